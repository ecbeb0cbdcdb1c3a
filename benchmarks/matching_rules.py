"""Compare rules of matching on objects of 4 to 16 pixels, with equal data, length and seeds.

    python -m benchmarks.matching_rules --runs runs/rules

Trains every run that is not finished, one after another, and resumes interrupted ones. Evaluates
each run once, on scenes that no run was trained on, and stores its figures in the run's folder.
Then writes docs/matching-rules.json and the table in docs/train.md from all figures.

`--only nwd-0 nwd-1` restricts this to single runs, so that two processes can share the work.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mdssd
from benchmarks.machine import facts
from benchmarks.stored import write_between
from mdssd import Detector, ops
from mdssd.data import SyntheticScenes
from mdssd.evaluation.evaluate import find_all
from mdssd.evaluation.result import EvalData
from mdssd.metrics import coco_ap
from mdssd.system.files import atomic_write
from mdssd.system.memory import keep_memory
from mdssd.training.loop import train
from mdssd.training.settings import Recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/matching-rules.json"
PAGE = ROOT / "docs/train.md"
MARKS = ("<!-- from benchmarks/matching_rules.py -->", "<!-- end -->")
# The rules: the settings of `Recipe` that differ from SSD's, and the options that set them.
RULES: dict[str, dict[str, Any]] = {
    "ssd": {},
    "threshold": {"match_threshold": 0.35},
    "top-k": {"match_top_k": 4},
    "nwd": {"match_metric": "nwd", "nwd_constant": 8.0},
}
TITLES = {
    "ssd": "SSD's",
    "threshold": "`--match-threshold 0.35`",
    "top-k": "`--match-top-k 4`",
    "nwd": "`--match-metric nwd --nwd-constant 8`",
}
SEEDS = (0, 1, 2)
SIZES = (4.0, 16.0)  # the longer side of an object, in pixels of the 300 x 300 scenes
MIDDLE = 8.0  # between the two groups of sizes that are evaluated
TRAIN_SCENES, TEST_SCENES = 1000, 200
TEST_SEED = 1 << 40  # as `mdssd.data.open_dataset` does, so that no run was trained on these
ITERATIONS = 500
MODEL: dict[str, Any] = {"width": 0.125, "batch_norm": True, "prior_scales": "small"}
RECIPE: dict[str, Any] = {
    "batch_size": 4,
    "lr": 0.01,
    "schedule": "cosine",
    "warmup": 50,
    "clip_gradient": 10.0,
    "ema": 0.99,
    "expand": 1.0,
    "crop_min_scale": 0.7,
}
# The figures of a run: their names in the results and in the table.
FIGURES = {
    "ap50": "AP at 0.5",
    "coco": "COCO AP",
    "ap50_smaller": "AP at 0.5 of 4-8 px",
    "ap50_larger": "AP at 0.5 of 8-16 px",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train and compare rules of matching.")
    parser.add_argument("--runs", type=Path, default=Path("runs/rules"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="RULE-SEED", choices=_names(), help="these")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_memory()
    for name in options.only or _names():
        if name in results(options.runs):
            continue
        rule, _, seed = name.rpartition("-")
        minutes = train_run(options.runs / name, rule, int(seed))
        figures = evaluate(options.runs / name, rule) | {"cpu_minutes": minutes}
        with atomic_write(options.runs / name / "figures.json") as file:
            json.dump(figures, file, indent=1, allow_nan=False)
        print(name, {key: figures[key] for key in FIGURES}, flush=True)
    write(results(options.runs))


def results(runs: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of each run, from its folder or else from docs/matching-rules.json.

    Figures that cannot be read, or of runs of another length, are left out, with a line about it.

    Raises:
        SystemExit: docs/matching-rules.json cannot be read.
    """
    try:
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    except ValueError as error:
        raise SystemExit(f"{RESULTS}: expected JSON, got {error}; restore or delete it") from None
    found: dict[str, dict[str, Any]] = {}
    for name in _names():
        path = runs / name / "figures.json"
        try:
            figures = json.loads(path.read_text()) if path.exists() else stored.get(name)
        except ValueError:
            figures = "no JSON"
        if isinstance(figures, dict) and _usable(figures):
            found[name] = figures
        elif figures is not None:
            where = path if path.exists() else RESULTS
            print(
                f"{where}: not used: expected the figures of {name} after {ITERATIONS} iterations"
            )
    return found


def train_run(run: Path, rule: str, seed: int) -> float | None:
    """Start or resume a run, unless it is finished.

    Returns:
        The minutes of CPU time that the run took; None if only a part of it ran now.
    """
    torch.manual_seed(seed)
    scenes = SyntheticScenes(TRAIN_SCENES, seed, sizes=SIZES)
    model = mdssd.mdssd300(len(scenes.classes) + 1, **MODEL)
    resume, begun = (run / "last.json").exists(), time.process_time()
    recipe = {**RECIPE, **RULES[rule], "iterations": ITERATIONS, "seed": seed}
    train(
        model,
        scenes,
        run,
        resume=resume,
        workers=0,
        check_images=False,
        progress=False,
        **recipe,
    )
    return None if resume else (time.process_time() - begun) / 60


def evaluate(run: Path, rule: str) -> dict[str, Any]:
    """Evaluate a finished run, once, on the test scenes."""
    detector = Detector.from_checkpoint(run, device="cpu", score_threshold=0.01)
    scenes = SyntheticScenes(TEST_SCENES, TEST_SEED, sizes=SIZES)
    found = find_all(detector, scenes, progress=False, workers=0)
    classes = len(detector.classes) + 1
    whole = coco_ap(found.detections, found.truth, classes).figures
    training = json.loads((run / "last.json").read_text())["training"]
    return {
        "ap50": whole["AP50"],
        "coco": whole["AP"],
        "ap50_smaller": _ap50(found, classes, SIZES[0], MIDDLE),
        "ap50_larger": _ap50(found, classes, MIDDLE, math.inf),
        "priors": priors_per_object(detector, found.truth, rule),
        "iterations": training["step"],
        "machine": facts(),
    }


def _ap50(found: EvalData, classes: int, least: float, below: float) -> float:
    """Return the AP at 0.5 of the objects whose longer side is in a range, ignoring the others."""
    truth = []
    for one in found.truth:
        side = (one["boxes"][:, 2:] - one["boxes"][:, :2]).max(1)
        truth.append({**one, "difficult": (side < least) | (side >= below)})
    return coco_ap(found.detections, truth, classes).figures["AP50"]


def priors_per_object(
    detector: Detector, truth: Sequence[Mapping[str, np.ndarray]], rule: str
) -> float:
    """Return how many priors learn an object by a rule, on average over all objects."""
    recipe, side = Recipe(iterations=1, **RULES[rule]), detector.input_size
    priors = detector.model.priors
    assert isinstance(side, int) and isinstance(priors, torch.Tensor)
    how: dict[str, Any] = {"top_k": recipe.match_top_k, "metric": recipe.match_metric}
    if recipe.match_metric == "nwd":
        how["nwd_constant"] = recipe.nwd_constant / side
    boxes = [torch.from_numpy(one["boxes"]).float() / side for one in truth]
    matches = ops.match_priors(boxes, priors.float(), recipe.match_threshold, **how)
    return int((matches.index >= 0).sum()) / sum(map(len, boxes))


def write(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Write docs/matching-rules.json and the table in docs/train.md."""
    with atomic_write(RESULTS) as file:
        json.dump(dict(sorted(figures.items())), file, indent=1, allow_nan=False)
        file.write("\n")
    write_between(PAGE, MARKS, table(figures))


def table(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table, and of the sentences about each rule below it."""
    heads = ["rule", "seeds", "priors per object", *FIGURES.values(), "CPU minutes"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for rule, title in TITLES.items():
        runs = list(_by_seed(figures, rule).values())
        if not runs:
            continue
        minutes = [run["cpu_minutes"] for run in runs]
        took = "-" if None in minutes else f"{statistics.mean(minutes):.1f}"
        cells = [title, str(len(runs)), f"{statistics.mean(r['priors'] for r in runs):.1f}"]
        cells += [_cell([run[name] for run in runs]) for name in FIGURES]
        lines.append("| " + " | ".join([*cells, took]) + " |")
    lines.append("")
    for rule in RULES:
        told = [change(figures, rule, name) for name in ("ap50", "ap50_smaller", "ap50_larger")]
        if rule != "ssd" and all(told):
            text = f"- {TITLES[rule]} {'. It '.join(told)}."
            lines += textwrap.wrap(text, 110, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def change(figures: Mapping[str, Mapping[str, Any]], rule: str, name: str) -> str:
    """Return by how much a rule changes a figure of SSD's, or "" without two seeds of both.

    The change is beyond the spread of the seeds if no seed of one rule reaches a seed of the other.
    """
    own, ssd = (_by_seed(figures, one) for one in (rule, "ssd"))
    pairs = [(own[seed][name], ssd[seed][name]) for seed in SEEDS if seed in own and seed in ssd]
    if len(pairs) < 2:
        return ""
    steps = [ours - theirs for ours, theirs in pairs]
    mean = statistics.mean(steps)
    ours, theirs = zip(*pairs, strict=True)
    place = "beyond" if min(ours) > max(theirs) or max(ours) < min(theirs) else "within"
    return (
        f"{'raises' if mean > 0 else 'lowers'} the {FIGURES[name]} by {abs(mean):.3f} on average "
        f"({min(steps):+.3f} to {max(steps):+.3f} for the same seed), which is {place} the spread "
        "of the seeds"
    )


def _by_seed(figures: Mapping[str, Mapping[str, Any]], rule: str) -> dict[int, Mapping[str, Any]]:
    return {seed: figures[name] for seed in SEEDS if (name := f"{rule}-{seed}") in figures}


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _names() -> list[str]:
    return [f"{rule}-{seed}" for seed in SEEDS for rule in RULES]


def _usable(figures: Mapping[str, Any]) -> bool:
    """Return whether this is what `main` stores of a run of this length."""
    if figures.get("iterations") != ITERATIONS:
        return False
    minutes = figures.get("cpu_minutes", "")
    numbers = [figures.get(name) for name in (*FIGURES, "priors")]
    return all(isinstance(v, float) for v in numbers) and isinstance(minutes, float | None)


if __name__ == "__main__":
    main()
