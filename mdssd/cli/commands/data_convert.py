"""`mdssd data convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mdssd.cli.commands.shared import open_data, recognised, show
from mdssd.data import DetectionDataset, write_coco, write_voc, write_yolo
from mdssd.data.faults import check_faults, faults_line, without_damaged
from mdssd.data.splits import ALL
from mdssd.system.stop import StopRequest
from mdssd.system.text import plural

_WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}


def run(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    _check_place(arguments.data, out)
    dataset = _open(arguments)
    losses: list[str] = []
    with StopRequest() as stop, stop.at_once():
        _WRITERS[arguments.to](dataset, out, None, link=arguments.link, losses=losses)
    for line in losses:
        show(line)
    samples = map(dataset.annotation, range(len(dataset)))
    crowds = arguments.to != "yolo"  # which has no place for them
    boxes = sum(int((crowds | ~sample.crowd).sum()) for sample in samples)
    counts = f"{plural(len(dataset), 'image')}, {plural(boxes, 'box')}"
    show(f"written: {out}, {counts} of {dataset.name}")
    show(f"next: mdssd data check {out}")
    return 0


def _check_place(data: str | None, out: Path) -> None:
    """Refuse to write into the folder that is read: the next reader would take it for a part."""
    if data is not None and out.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"--out: expected a folder outside {data}, which is read; got {out}")


def _open(arguments: argparse.Namespace) -> DetectionDataset:
    """Open the data and print what was recognised, left out, repaired and guessed."""
    options = vars(arguments)
    if options["split"] is None and options["data"] is not None:
        options = {**options, "split": ALL}
    faults: list[str] = []
    dataset = open_data(
        options, train=True, input_size=300, classes=arguments.classes, faults=faults
    )
    if dataset.format:
        show(recognised(dataset))
    dataset = without_damaged(dataset, faults)
    if not options.get("allow_faults"):
        check_faults(dataset, faults)
    if line := faults_line(dataset, faults):
        show(line)
    return dataset
