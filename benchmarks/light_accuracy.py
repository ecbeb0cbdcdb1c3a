"""Compare the light form on ImageNet weights with VGG16 from scratch, in equal time of a core.

    python -m benchmarks.light_accuracy --bccd DIR --cars DIR --pcb DIR --init lite0.safetensors

Trains every run that is not finished, one after another, and resumes interrupted ones. Evaluates
each run once on the test split and once on the images that it was trained on, stores the results
in `--runs`, and prints a table of them.
`--only pcb-light-0` restricts this to single runs, and `--minutes` says how long each may take.
`--forms vgg float32` compares VGG16 in bfloat16 with as many iterations in float32. `--write` adds
the results to docs/light-accuracy.json, and writes the table of docs/accuracy.md and the columns
of AP in docs/forms.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.forms import ACCURACY, DATA, LITE0, Form, write_accuracy
from benchmarks.small_objects import evaluate, start_or_resume
from benchmarks.stored import ROOT, write_between
from mdssd.system.files import atomic_write

PAGE = ROOT / "docs/accuracy.md"
MARKS = ("<!-- from benchmarks/light_accuracy.py -->", "<!-- end -->")
MINUTES = 8.0
CLASS = {"cars": "car"}  # the only class that is evaluated, as the others are too rare to be learnt


class Training(NamedTuple):
    """How a form is trained.

    Attributes:
        a_minute: iterations of 4 images for which one core of an AMD EPYC with AVX-512 BF16 took a
            minute of processor time, in bfloat16 (benchmarks/NOTES.md).
        imagenet: whether the trunk starts from the weights of `--init`.
    """

    title: str
    form: Form
    lr: float
    a_minute: int
    imagenet: bool = True
    amp: str = "bf16"


_VGG = Form("mdssd300", width=0.25)
_LIGHT = Form("mdssd300", LITE0, 0.25, light=True)
FORMS = {
    "vgg": Training("VGG16, width 0.25, from scratch", _VGG, 0.03, 133, imagenet=False),
    "light": Training("light, EfficientNet-Lite0, ImageNet", _LIGHT, 0.1, 196),
    "light_scratch": Training(
        "light, EfficientNet-Lite0, from scratch", _LIGHT, 0.1, 196, imagenet=False
    ),
    "vgg_light": Training(
        "light, VGG16, width 0.25, from scratch",
        _VGG._replace(light=True),
        0.1,
        178,
        imagenet=False,
    ),
    "lite0": Training("EfficientNet-Lite0, ImageNet", _LIGHT._replace(light=False), 0.05, 134),
    "ssd_light": Training(
        "SSD300, light, EfficientNet-Lite0, ImageNet", _LIGHT._replace(model="ssd300"), 0.1, 259
    ),
    "light_half": Training(
        "light, width 0.5, EfficientNet-Lite0, ImageNet", _LIGHT._replace(width=0.5), 0.1, 152
    ),
    "light_512": Training(
        "MDSSD512, light, EfficientNet-Lite0, ImageNet", _LIGHT._replace(model="mdssd512"), 0.1, 74
    ),
    "ssd_vgg": Training(
        "SSD300, VGG16, width 0.25, from scratch",
        Form("ssd300", width=0.25),
        0.03,
        267,
        imagenet=False,
    ),
    "ssd_lite0": Training(
        "SSD300, EfficientNet-Lite0, ImageNet", Form("ssd300", LITE0, 0.25), 0.05, 262
    ),
    "resnet101": Training(
        "ResNet101, width 0.25, from scratch",
        _VGG._replace(trunk="resnet101"),
        0.03,
        153,
        imagenet=False,
    ),
    "vgg_512": Training(
        "MDSSD512, VGG16, width 0.25, from scratch",
        _VGG._replace(model="mdssd512"),
        0.03,
        62,
        imagenet=False,
    ),
    "lite0_512": Training(
        "MDSSD512, EfficientNet-Lite0, ImageNet", Form("mdssd512", LITE0, 0.25), 0.05, 62
    ),
    "ssd512_light": Training(
        "SSD512, light, EfficientNet-Lite0, ImageNet", _LIGHT._replace(model="ssd512"), 0.1, 106
    ),
    "float32": Training(
        "VGG16, width 0.25, from scratch, in float32",
        _VGG,
        0.03,
        133,
        imagenet=False,
        amp="none",
    ),
}
# `mdssd train --resume` does not remember these, so that every start has to pass them.
MACHINE = "--threads 1 --workers 0".split()
FIGURES = {
    "voc07": "VOC07 AP",
    "coco": "COCO AP",
    "coco_small": "COCO AP small",
    "coco_train": "COCO AP, training images",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for data, title in DATA.items():
        parser.add_argument(f"--{data}", type=Path, help=f"folder of {title}")
    parser.add_argument("--init", type=Path, help="the weights that `make light-weights` writes")
    parser.add_argument("--runs", type=Path, default=Path("runs/light"), help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of one core, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["vgg", "light"])
    parser.add_argument("--only", nargs="+", metavar="DATA-FORM-SEED", help="restrict to these")
    parser.add_argument("--write", action="store_true", help="store the results in docs/")
    options = parser.parse_args(argv)
    store = options.runs / "results.json"
    for seed in options.seeds:
        for data in DATA:
            for form, how in FORMS.items():
                name = f"{data}-{form}-{seed}"
                folder: Path | None = getattr(options, data)
                wanted = name in options.only if options.only else form in options.forms
                if options.minutes != MINUTES:
                    name += f"@{options.minutes:g}"
                if not wanted or name in _results(store):
                    continue
                if folder is None or (how.imagenet and options.init is None):
                    missing = data if folder is None else "init"
                    print(f"{name}: skipped, because --{missing} is not given")
                    continue
                run = options.runs / name
                train(run, how, seed, folder, options.init, options.minutes)
                figures = evaluate(run, folder, CLASS.get(data), "cpu")
                known = evaluate(run, folder, CLASS.get(data), "cpu", _training_split(folder))
                figures["coco_train"] = known["coco"]
                figures |= {"data": data, "form": how.form, "amp": how.amp}
                figures["imagenet"] = how.imagenet
                _add(store, {name: figures})
    if options.write:
        _add(ACCURACY, _results(store))
        write_between(PAGE, MARKS, table(_results(ACCURACY)))
        write_accuracy()
    print("\n".join(table(_results(store))))


def train(
    run: Path, how: Training, seed: int, folder: Path, init: Path | None, minutes: float
) -> None:
    """Start or resume a run, unless it is finished."""
    model, trunk, width, light = how.form
    new = ["--data", folder, "--split", _training_split(folder), "--no-check-images"]
    new += ["--seed", seed]
    new += ["--model", model, "--trunk", trunk, "--width", width, *(["--light"] if light else [])]
    new += ["--amp", how.amp, "--lr", how.lr, "--warmup", 100]
    new += ["--iterations", round(minutes * how.a_minute)]
    start_or_resume(run, new + (["--init", init] if how.imagenet else []), MACHINE)


def _training_split(folder: Path) -> str:
    return "trainval" if (folder / "ImageSets").is_dir() else "train"


def table(results: dict[str, Any]) -> list[str]:
    """Return the lines of a table in Markdown."""
    heads = ["data", "form", "minutes", "iterations", *FIGURES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for name, run in results.items():
        data, form, rest = name.split("-")
        minutes = rest.partition("@")[2] or f"{MINUTES:g}"
        groups.setdefault((minutes, data, form), []).append(run)
    for key in product(sorted({key[0] for key in groups}, key=float), DATA, FORMS):
        if runs := groups.get(key):
            minutes, data, form = key
            steps = ", ".join(f"{n:,}" for n in sorted({run["iterations"] for run in runs}))
            cells = [DATA[data], FORMS[form].title, minutes, steps]
            for figure in FIGURES:
                values = [run[figure] for run in runs]
                each = ", ".join(f"{value:.3f}" for value in values)
                cells.append(f"{statistics.mean(values):.3f} ({each})" if values[1:] else each)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _add(store: Path, results: dict[str, Any]) -> None:
    with atomic_write(store) as file:
        json.dump(dict(sorted((_results(store) | results).items())), file, indent=1)
        file.write("\n")


def _results(store: Path) -> dict[str, Any]:
    return json.loads(store.read_text()) if store.exists() else {}


if __name__ == "__main__":
    main()
