"""Compare MDSSD with SSD on small objects, with equal data, schedule, width and seeds.

    python -m benchmarks.small_objects --bccd DIR --cars DIR --runs runs/small

Trains every run that is not finished, one after another, and resumes interrupted ones. Evaluates
each run once on the test split and stores the results in docs/small-objects.json. Then writes
docs/small-objects.md, its picture and the table in docs/accuracy.md from them.

`--only cars-mdssd300-0` restricts this to single runs. `--lr 0.01` trains with another learning
rate than LR, for the table of learning rates. On a GPU, use `--width 1 --device cuda`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.machine import facts
from benchmarks.report import OTHERS, OURS, save
from benchmarks.stored import write_between
from mdssd import Detector
from mdssd.data import DetectionDataset, open_dataset
from mdssd.evaluation.evaluate import find_all
from mdssd.evaluation.result import EvalData, measure
from mdssd.metrics import voc_ap
from mdssd.system.files import atomic_write

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/small-objects.json"
PAGE = ROOT / "docs/small-objects.md"
PICTURE = ROOT / "docs/small-objects.png"
ACCURACY = ROOT / "docs/accuracy.md"
MARKS = ("<!-- from benchmarks/small_objects.py -->", "<!-- end -->")
# The models for each data set; a suffix after "+" replaces the prior scales of OPTIONS. On the
# scenes, the priors of `coco` match none of the smallest third of the objects and those of `small`
# nearly all. On the cars, `small` matches fewer objects than `coco`.
MODELS = {
    "cars": ("ssd300", "mdssd300"),
    "bccd": ("ssd300", "mdssd300"),
    "shapes": ("ssd300", "mdssd300", "mdssd300+small"),
}
COLOURS = {"ssd300": OTHERS, "mdssd300": OURS, "mdssd300+small": "tab:green"}
EPOCHS = {"cars": 9, "bccd": 14, "shapes": 4}  # about 4,000 images
# Both models use the learning rate at which SSD300 did better with the first seed. The other
# candidates were 0.02 for the cars and 0.03 for the cells and the scenes.
LR = {"cars": 0.01, "bccd": 0.01, "shapes": 0.01}
TITLES = {
    "cars": "KIT AIS, cars from the air (about 24 pixels; the class car alone)",
    "bccd": "BCCD, blood cells (platelets about 21 pixels at 300 input)",
    "shapes": "generated scenes (shapes of 8 to 40 pixels, median 17.5)",
}
# The only class that is evaluated, if the others are too rare to be learnt.
CLASS = {"cars": "car"}
SCENES = 1000
OPTIONS = (
    "--batch-norm --prior-scales coco --batch-size 4 --schedule cosine --warmup 50 "
    "--clip-gradient 10 --ema 0.99 --expand 1 --crop-min-scale 0.7"
).split()
AXES = ("data", "model", "width", "seed")  # the parts of a run's name
# The metrics: their names in the results and on the page.
FIGURES = {
    "voc07": "VOC07 AP",
    "coco": "COCO AP",
    "coco_small": "COCO AP small",
    "smallest_third": "VOC12 AP, smallest third",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Train and compare MDSSD and SSD on small objects."
    )
    parser.add_argument("--bccd", type=Path, help="folder of BCCD in VOC layout")
    parser.add_argument("--cars", type=Path, help="folder of KIT AIS in VOC layout")
    parser.add_argument("--runs", type=Path, default=Path("runs/small"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="DATA-MODEL-SEED", help="restrict to these")
    parser.add_argument("--lr", type=float, help="learning rate, instead of the default in LR")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    folders = {"bccd": options.bccd, "cars": options.cars, "shapes": None}
    for seed in options.seeds:
        for data in EPOCHS:
            for model in MODELS[data]:
                name = f"{data}-{model}-{seed}"
                if options.only and name not in options.only:
                    continue
                if data != "shapes" and folders[data] is None:
                    print(f"{name}: skipped, because --{data} is not given")
                    continue
                name = f"{data}-{model}-{options.width:g}-{seed}"
                if options.lr not in (None, LR[data]):
                    name += f"@{options.lr:g}"
                run = options.runs / name
                train(run, data, model, seed, folders[data], options)
                if name not in _results():
                    _keep(name, evaluate(run, folders[data], CLASS.get(data), options.device))
    write_page()


def train(
    run: Path,
    data: str,
    model: str,
    seed: int,
    folder: Path | None,
    options: argparse.Namespace,
) -> None:
    """Start or resume a run, unless it is finished."""
    lr = options.lr or LR[data]
    source = ["--scenes", SCENES] if folder is None else ["--data", folder]
    name, _, scales = model.partition("+")
    new = ["--model", name, "--width", options.width, "--seed", seed]
    new += ["--epochs", EPOCHS[data], "--lr", lr]
    new += [*OPTIONS, *source, *(["--prior-scales", scales] if scales else [])]
    start_or_resume(run, new, ["--threads", options.threads, "--device", options.device])


def start_or_resume(run: Path, new: Sequence[Any], always: Sequence[Any] = ()) -> None:
    """Train unless the run is finished, with the options `always`, and `new` at its beginning."""
    last = run / "last.json"
    if last.exists() and json.loads(last.read_text())["training"]["finished"]:
        return
    command = [sys.executable, "-m", "mdssd", "train", "--out", run, *always]
    command += ["--resume"] if last.exists() else new
    subprocess.run([str(part) for part in command], check=True)


def evaluate(
    run: Path, folder: Path | None, only: str | None, device: str, split: str = "test"
) -> dict[str, Any]:
    """Evaluate a finished run on a split of its data, on all classes or only one."""
    detector = Detector.from_checkpoint(run, device=device, score_threshold=0.01)
    dataset: DetectionDataset = open_dataset(
        folder,
        split=split,
        classes=detector.classes if folder else None,
        image_size=detector.input_size,
    )
    found, classes = find_all(detector, dataset), list(detector.classes)
    if only is not None:
        found, classes = _of_class(found, classes.index(only) + 1), [only]
    result = measure(found, dataset, classes)
    assert result.coco is not None
    training = json.loads((run / "last.json").read_text())["training"]
    return {
        "voc07": result.voc07.mean_ap,
        "coco": result.coco.figures["AP"],
        "coco_small": result.coco.figures["AP_small"],
        "smallest_third": smallest_third(found, len(classes) + 1),
        "iterations": training["step"],
        "minutes": training["seconds"] / 60,
        "machine": facts(),
    }


def _of_class(found: EvalData, label: int) -> EvalData:
    """Keep only the boxes with this label, and change it to 1."""

    def kept(one: dict[str, Any]) -> dict[str, Any]:
        rows = one["labels"] == label
        return {**{name: v[rows] for name, v in one.items()}, "labels": one["labels"][rows] * 0 + 1}

    return EvalData(
        [kept(d) for d in found.detections], [kept(t) for t in found.truth], found.seconds
    )


def smallest_third(found: EvalData, num_classes: int) -> float:
    """Return the VOC12 mAP at IoU 0.5 for the smallest third of each class's objects by area.

    Larger objects are ignored, as objects marked difficult are.
    """
    areas = np.concatenate([one["area"] for one in found.truth])
    labels = np.concatenate([one["labels"] for one in found.truth])
    limit = {k: np.quantile(areas[labels == k], 1 / 3) for k in np.unique(labels).tolist()}
    truth = []
    for one in found.truth:
        large = np.array([a > limit[k] for a, k in zip(one["area"], one["labels"], strict=True)])
        truth.append({**one, "difficult": one["difficult"] | large.astype(bool)})
    return voc_ap(found.detections, truth, num_classes, metric="voc12").mean_ap


def write_page() -> None:
    """Write docs/small-objects.md, its picture and the table in docs/accuracy.md."""
    everything = _results()
    results = {name: run for name, run in everything.items() if "@" not in name}
    draw(results)
    write_between(ACCURACY, MARKS, _summary(results))
    lines = [
        "# MDSSD against SSD on small objects",
        "",
        *textwrap.wrap(
            "Both models are trained from scratch, with batch normalisation, on the same data with "
            "the same schedule, width and seeds, and are evaluated on the test split once. The "
            "tables show the mean, and in brackets each seed. A run sees about 4,000 images, which "
            "is short: compare the two models with each other, not with the papers.",
            width=100,
        ),
        "",
        *textwrap.wrap(
            "Both models use the learning rate that suits SSD300: of two rates, the one with the "
            "better test figures for the first seed. How the weights of both models start was also "
            "chosen by test figures on these data sets, in earlier runs that these replace "
            "([NOTES.md](../benchmarks/NOTES.md)). So these are development figures.",
            width=100,
        ),
        "",
        "```",
        "python -m benchmarks.small_objects --bccd BCCD --cars KIT_AIS --runs runs/small",
        "```",
        "",
        "Options of every run:",
        "",
        "```",
        *textwrap.wrap(" ".join(OPTIONS), width=100, break_on_hyphens=False),
        "```",
        "",
        "`+small` has `--prior-scales small` instead, which SSD does not have.",
        "",
        f"![Each figure of each run, and the means]({PICTURE.name})",
    ]
    for data, title in TITLES.items():
        series = _series(results, data)
        if series:
            lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
            lines += [f"{EPOCHS[data]} epochs, learning rate {LR[data]}.", ""]
            lines += _head("model", "width")
        for (model, width), runs in series.items():
            cells = [_cell([run[name] for run in runs]) for name in FIGURES]
            lines.append("| " + " | ".join([model, width, *cells]) + " |")
    others = [name.split("@") for name in everything if "@" in name]
    if others:
        lines += ["", "## At other learning rates", "", *_head(*AXES, "lr")]
    for name, other in others:
        axes = name.split("-")
        for lr, run in (
            (f"{LR[axes[0]]:g}", results.get(name)),
            (other, everything[f"{name}@{other}"]),
        ):
            if run:
                cells = [f"{run[figure]:.3f}" for figure in FIGURES]
                lines.append("| " + " | ".join([*axes, lr, *cells]) + " |")
    with atomic_write(PAGE) as file:
        file.write("\n".join(lines) + "\n")


def draw(results: dict[str, Any]) -> None:
    """Draw a dot for each run and a line for each mean, with one axes for each data set."""
    shown = [(data, s) for data in TITLES if (s := _series(results, data))]
    figure = Figure(figsize=(4.2 * len(shown), 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (data, series) in zip(axes, shown, strict=True):
        for k, ((model, width), runs) in enumerate(series.items()):
            place = np.arange(len(FIGURES)) + (k + 1) / (len(series) + 1) - 0.5
            values = np.array([[run[name] for name in FIGURES] for run in runs])
            colour = COLOURS[model]
            ax.hlines(values.mean(0), place - 0.12, place + 0.12, color=colour, lw=2)
            ax.plot(place, values.T, "o", ms=4, alpha=0.6, color=colour)
            ax.plot([], [], "o-", color=colour, label=f"{model}, width {width}")
        ax.set_xticks(range(len(FIGURES)), [t.replace(", ", ",\n") for t in FIGURES.values()])
        ax.tick_params(labelsize=7)
        ax.set_ylim(0, 1)
        ax.grid(axis="y", alpha=0.3)
        ax.set_title(TITLES[data].split(" (")[0], fontsize=9)
        ax.legend(fontsize=7, loc="lower left")
    save(figure, PICTURE)


def _series(results: dict[str, Any], data: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Group the runs of a data set by (model, width), sorted by width and the order of MODELS."""
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    widths = sorted({name.split("-")[2] for name in results})
    for width, model in itertools.product(widths, MODELS[data]):
        start = f"{data}-{model}-{width}-"
        if runs := [run for name, run in results.items() if name.startswith(start)]:
            series[model, width] = runs
    return series


def _summary(results: dict[str, Any]) -> list[str]:
    lines = _head("data", "model", "width", "seeds")
    for data, title in TITLES.items():
        for (model, width), runs in _series(results, data).items():
            cells = [title.split(" (")[0], model, width, str(len(runs))]
            for name in FIGURES:
                values = [run[name] for run in runs]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _head(*first: str) -> list[str]:
    heads = [*first, *FIGURES.values()]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{value:.3f}" for value in values)
    return f"{statistics.mean(values):.3f} ({each})"


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _keep(name: str, figures: dict[str, Any]) -> None:
    results = {**_results(), name: figures}
    with atomic_write(RESULTS) as file:
        json.dump(dict(sorted(results.items())), file, indent=1, allow_nan=False)
        file.write("\n")


if __name__ == "__main__":
    main()
