"""Measure what the adapters gain on the real packages, and write it into docs/compatibility.md.

    PYTHONPATH=. build/compat/bin/python -m benchmarks.real_codebases

Runs in the environment that `make compat` makes; a package that is not installed is left out. Each
row calls the package's own function on the same inputs, unpatched and patched in turns, on one
thread, and takes the median of the ratios of neighbouring calls. The inputs are random; "peaked"
ones have the few candidates of a trained network. Codebases that are no packages are measured if a
folder is named, such as `--lufficc DIR`; benchmarks/codebases_in_folders.py says how. `--only TEXT`
measures some of the rows again. The process runs before others where it may, so that they do not
disturb it.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.codebases_in_folders import CODEBASES
from benchmarks.machine import run_before_others
from benchmarks.real_rows import Row, random_boxes, random_numbers
from benchmarks.stored import number

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
compat = importlib.import_module("compat")

SECONDS, PATIENCE = 8.0, 30.0  # that a row takes about, and at most before its last pair of calls
LEAST, MOST = 5, 101  # pairs of calls
Cells = tuple[str, ...]  # of a row of the page


def _peaked(logits: Tensor, background: float, generator: torch.Generator) -> Tensor:
    """Logits of which one row in fifty is an object."""
    rows = torch.rand(logits.shape[:-1], generator=generator) < 0.02
    return torch.where(rows[..., None], 3 * logits, logits + background)


def _one_stage(name: str) -> tuple[Any, dict[str, Tensor], list[Tensor], list[int]]:
    """A model of torchvision, outputs for two images of 512 x 512, anchors and their levels."""
    detection = importlib.import_module("torchvision.models.detection")
    model = getattr(detection, name)(weights=None, weights_backbone=None).eval()
    generator = random_numbers()
    sides = [38, 19, 10, 5, 3, 1] if name.startswith("ssd") else [64, 32, 16, 8, 4]
    images = detection.image_list.ImageList(torch.zeros(2, 3, 512, 512), [(512, 512)] * 2)
    maps = [torch.zeros(2, 1, side, side) for side in sides]
    anchors = model.anchor_generator(images, maps)
    per_cell = model.anchor_generator.num_anchors_per_location()
    levels = [side * side * n for side, n in zip(sides, per_cell, strict=True)]
    draw = lambda width: torch.randn(2, sum(levels), width, generator=generator)  # noqa: E731
    outputs = {"bbox_regression": 0.5 * draw(4), "cls_logits": draw(91)}
    if name.startswith("fcos"):
        outputs = {
            "bbox_regression": draw(4).abs(),
            "cls_logits": draw(91),
            "bbox_ctrness": draw(1),
        }
    return model, outputs, anchors, levels


def torchvision_rows() -> Iterator[Row]:
    torchvision = importlib.import_module("torchvision")
    fast = importlib.import_module("mdssd.integrations.torchvision")
    generator = random_numbers(1)
    everywhere = lambda: fast.patch(torchvision)  # noqa: E731
    for count in (1000, 5000):
        boxes, scores = (
            random_boxes(count, 1000.0, generator),
            torch.rand(count, generator=generator),
        )
        classes = torch.randint(0, 80, (count,), generator=generator)
        yield Row(
            "torchvision",
            f"ops.nms, {count:,} boxes",
            lambda b=boxes, s=scores: torchvision.ops.nms(b, s, 0.5),
            everywhere,
        )
        yield Row(
            "torchvision",
            f"ops.batched_nms, {count:,} boxes of 80 classes",
            lambda b=boxes, s=scores, c=classes: torchvision.ops.batched_nms(b, s, c, 0.5),
            everywhere,
        )
    for name, title, shift in (
        ("ssd300_vgg16", "SSD", 0.0),
        ("retinanet_resnet50_fpn", "RetinaNet", -5.0),
        ("fcos_resnet50_fpn", "FCOS", -5.0),
    ):
        yield from _of_one_stage(fast, name, title, shift)
    yield from _of_rpn(fast)


def _of_one_stage(fast: Any, name: str, title: str, shift: float) -> Iterator[Row]:
    model, outputs, anchors, levels = _one_stage(name)
    shapes = [(512, 512)] * 2
    generator = random_numbers(2)
    logits = outputs["cls_logits"]
    if title == "SSD":
        peaked = logits.clone()
        peaked[..., 0] += 8 * (torch.rand(peaked.shape[:2], generator=generator) > 0.02)
    else:
        peaked = _peaked(logits, shift, generator)
    for kind, scores in (("random", logits + shift / 2), ("peaked", peaked)):
        given: Any = outputs | {"cls_logits": scores}
        own: Any = anchors
        if title != "SSD":
            given = {key: list(value.split(levels, 1)) for key, value in given.items()}
            own = [list(each.split(levels)) for each in anchors]
        yield Row(
            "torchvision",
            f"{title}, post-processing, 2 images, {kind}",
            lambda g=given, a=own: model.postprocess_detections(g, a, shapes),
            lambda: fast.patch(model),
        )
    targets = [
        {
            "boxes": random_boxes(10, 512.0, generator),
            "labels": torch.randint(1, 91, (10,), generator=generator),
        }
        for _ in range(2)
    ]
    heads = {key: value.clone().requires_grad_() for key, value in outputs.items()}
    if title == "SSD":
        _stand_in_for_network(model, heads, anchors)
        losses = lambda: model([torch.zeros(3, 512, 512)] * 2, targets)  # noqa: E731
    else:
        more = [levels] if title == "FCOS" else []
        losses = lambda: model.compute_loss(targets, heads, anchors, *more)  # noqa: E731
    train = lambda: torch.autograd.grad(sum(losses().values()), list(heads.values()))  # noqa: E731
    what = f"{title}, matching, loss and gradients, 2 images of 10 boxes"
    yield Row("torchvision", what, train, lambda: fast.patch(model))


def _stand_in_for_network(model: Any, heads: dict[str, Tensor], anchors: list[Tensor]) -> None:
    """Let an SSD in training do all but its network, whose outputs are given."""
    detection = importlib.import_module("torchvision.models.detection")
    joined = detection.image_list.ImageList(torch.zeros(2, 3, 8, 8), [(512, 512)] * 2)
    model.train()
    vars(model).update(
        transform=lambda images, targets: (joined, targets),
        backbone=lambda images: {"0": images},
        head=lambda features: heads,
        anchor_generator=lambda images, features: anchors,
    )


def _of_rpn(fast: Any) -> Iterator[Row]:
    detection = importlib.import_module("torchvision.models.detection")
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    generator = random_numbers(3)
    sides = [128, 64, 32, 16, 8]
    images = detection.image_list.ImageList(torch.zeros(2, 3, 512, 512), [(512, 512)] * 2)
    maps = [torch.zeros(2, 1, side, side) for side in sides]
    anchors = model.rpn.anchor_generator(images, maps)
    levels = [3 * side * side for side in sides]
    proposals = torch.stack(anchors) + 10 * torch.randn(2, sum(levels), 4, generator=generator)
    objectness = torch.randn(2 * sum(levels), 1, generator=generator)
    arguments = (proposals, objectness, [(512, 512)] * 2, levels)
    patch = lambda: fast.patch(model)  # noqa: E731
    what = "Faster R-CNN, filter_proposals, 2 images"
    yield Row("torchvision", what, lambda: model.rpn.filter_proposals(*arguments), patch)
    targets = [{"boxes": random_boxes(10, 512.0, generator)} for _ in range(2)]
    call = lambda: model.rpn.assign_targets_to_anchors(anchors, targets)  # noqa: E731
    yield Row("torchvision", "Faster R-CNN, matching of the RPN, 2 images of 10 boxes", call, patch)


def ultralytics_rows() -> Iterator[Row]:
    package = importlib.import_module("ultralytics")
    nms = importlib.import_module("ultralytics.utils.nms")
    fast = importlib.import_module("mdssd.integrations.ultralytics")
    generator = random_numbers()
    for threshold, kind in ((0.001, "as in validation"), (0.25, "as in prediction")):
        prediction = torch.rand(1, 84, 8400, generator=generator)
        prediction[:, :4] *= torch.tensor([[640.0], [640], [120], [120]])
        prediction[:, 4:] = prediction[:, 4:] ** 20 * 0.6
        yield Row(
            "ultralytics",
            f"non_max_suppression of [1, 84, 8400], {kind}",
            lambda p=prediction, t=threshold: nms.non_max_suppression(p.clone(), t, 0.7),
            lambda: fast.patch(package),
        )


def effdet_rows() -> Iterator[Row]:
    package = importlib.import_module("effdet")
    fast = importlib.import_module("mdssd.integrations.effdet")
    bench = importlib.import_module("effdet.bench")
    module = importlib.import_module("effdet.anchors")
    generator = random_numbers()
    ratios = [(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]
    anchors = module.Anchors(3, 7, 3, ratios, 4.0, (512, 512))
    index = torch.randint(0, len(anchors.boxes), (2, 5000), generator=generator)
    classes = torch.randint(0, 90, (2, 5000), generator=generator)
    scores = torch.randn(2, 5000, 1, generator=generator) - 3
    offsets = 0.3 * torch.randn(2, 5000, 4, generator=generator)
    selected = (scores, offsets, anchors.boxes, index, classes)
    patch = lambda: fast.patch(package)  # noqa: E731
    for soft in (False, True):
        yield Row(
            "effdet",
            f"_batch_detection, 2 images, {'soft-NMS' if soft else 'NMS'}",
            lambda s=soft: bench._batch_detection(2, *selected, None, None, 100, s),
            patch,
        )
    labeler = module.AnchorLabeler(anchors, 90, 0.5)
    boxes = [random_boxes(10, 512.0, generator) for _ in range(2)]
    labels = [torch.randint(1, 91, (10,), generator=generator).float() for _ in range(2)]
    call = lambda: labeler.batch_label_anchors(boxes, labels)  # noqa: E731
    yield Row("effdet", "batch_label_anchors, 2 images of 10 boxes", call, patch)


def _rows_of(count: int) -> np.ndarray:
    generator = random_numbers(count)
    parts = (
        random_boxes(count, 1000.0, generator),
        torch.rand(count, 1, generator=generator),
        torch.randint(0, 10, (count, 1), generator=generator).float(),
    )
    return torch.cat(parts, 1).numpy()


def sahi_rows() -> Iterator[Row]:
    package = importlib.import_module("sahi")
    fast = importlib.import_module("mdssd.integrations.sahi")
    combine = importlib.import_module("sahi.postprocess.combine")
    make = importlib.import_module("sahi.prediction").ObjectPrediction
    objects = [
        make(
            bbox=[float(x) for x in row[:4]],
            category_id=int(row[5]),
            category_name=str(int(row[5])),
            score=float(row[4]),
            full_shape=[1200, 1200],
        )
        for row in _rows_of(2000)
    ]
    for name in ("GreedyNMMPostprocess", "NMMPostprocess", "NMSPostprocess"):
        merge = getattr(combine, name)(0.5, "IOS", False)
        yield Row(
            "sahi",
            f"{name}, 2,000 boxes of 10 classes",
            lambda m=merge: m(list(objects)),
            lambda: fast.patch(package),
        )


def supervision_rows() -> Iterator[Row]:
    package = importlib.import_module("supervision")
    fast = importlib.import_module("mdssd.integrations.supervision")
    rows = _rows_of(2000)
    for name in ("box_non_max_suppression", "box_non_max_merge"):
        yield Row(
            "supervision",
            f"{name}, 2,000 boxes of 10 classes",
            lambda n=name: getattr(package, n)(rows, 0.5),
            lambda: fast.patch(package),
        )


def measured(row: Row) -> tuple[float, float, float]:
    """Return the median seconds of both sides, and of their ratios in neighbouring calls."""

    def seconds() -> float:
        start = time.perf_counter()
        row.call()
        return time.perf_counter() - start

    def patched() -> float:
        with row.patch():
            return seconds()

    want = row.call()  # first calls load and allocate
    with row.patch():
        row.check(row.call(), want)
    own, ours, began, spent = [], [], time.perf_counter(), 0.0
    while len(own) < LEAST or (spent < SECONDS and len(own) < MOST):
        own.append(seconds())
        ours.append(patched())
        spent = time.perf_counter() - began
        if spent > PATIENCE:
            break
    ratios = [a / b for a, b in zip(own, ours, strict=True)]
    return statistics.median(own), statistics.median(ours), statistics.median(ratios)


def sources(options: argparse.Namespace) -> Iterator[tuple[str, Iterator[Row]]]:
    """Yield the version and the rows of each package and codebase that is here."""
    found = compat.versions(Path(sys.executable))
    for name in ("torchvision", *compat.ADAPTED):
        if name in found:
            yield found[name], globals()[f"{name}_rows"]()
        else:
            print(f"{name} is not installed here; left out", file=sys.stderr)
    for name, rows in CODEBASES.items():
        folder = getattr(options, name)
        if folder is None:
            print(f"--{name} names no folder; left out", file=sys.stderr)
            continue
        command = ["git", "-C", str(folder), "log", "-1", "--format=%h"]
        yield subprocess.run(command, capture_output=True, text=True).stdout.strip(), rows(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="measure the rows whose call has this text")
    for name in CODEBASES:
        parser.add_argument(f"--{name}", dest=name, type=Path, help="the folder to import it from")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run_before_others()
    lines: list[Cells] = []
    for version, rows in sources(options):
        for row in rows:
            if options.only not in f"{row.package}: {row.what}":
                continue
            own, ours, ratio = measured(row)
            gain = f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"
            cells = f"{row.package} {version}".strip(), row.what
            lines.append((*cells, number(1e3 * own), number(1e3 * ours), f"{gain}x"))
            print(*lines[-1], sep=" | ", flush=True)
    page = compat.PAGE.read_text()
    old = compat.gains(page)
    if not options.only:  # a call that no longer has a row is dropped
        names = {line[0].rpartition(" ")[0] for line in lines}
        old = [line for line in old if line[0].rpartition(" ")[0] not in names]
    compat.PAGE.write_text(compat.with_gains(page, replaced(old, lines)))
    return 0


def replaced(rows: Sequence[Cells], newer: Sequence[Cells]) -> list[Cells]:
    """Return the rows with newer ones in their places, and other new ones after their package."""
    result = {row[:2]: row for row in rows} | {row[:2]: row for row in newer}
    packages = list(dict.fromkeys(key[0] for key in result))
    return sorted(result.values(), key=lambda row: packages.index(row[0]))


if __name__ == "__main__":
    sys.exit(main())
