"""Benchmark detection in tiles, from image files to boxes, with the network of the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from benchmarks.peers import tiled
from benchmarks.rows import Sides, by_device
from benchmarks.turns import Side
from mdssd import Detector
from mdssd.data import Sample, SyntheticScenes
from mdssd.metrics import voc_ap

_CHECKPOINT = Path(__file__).resolve().parent.parent / "demo" / "mdssd300-shapes.json"
_IMAGES, _SIDE = 2, 780  # nine tiles of 300 each


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Sample]]:
    """Generated scenes in JPEG files of quality 95."""
    folder = tmp_path_factory.mktemp("scenes")
    made = []
    for scene in SyntheticScenes(_IMAGES, 7, _SIDE):
        path = folder / f"{scene.image_id}.jpg"
        bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
        made.append((path, scene))
    return made


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


@lru_cache
def _detector(threshold: float, **options: Any) -> Detector:
    options.update(device="cpu", score_threshold=threshold)
    return Detector.from_checkpoint(_CHECKPOINT, **options)


_WAYS = {
    "mdssd Detector": lambda threshold: tiled.mdssd(
        _detector(threshold, tile="auto", overlap=tiled.OVERLAP)
    ),
    "sahi, greedy merging": lambda threshold: tiled.sahi(_detector(threshold), "greedy_nmm"),
    "sahi, NMS": lambda threshold: tiled.sahi(_detector(threshold), "nms"),
}


def _mean_ap(find: tiled.Find, scenes: list[tuple[Path, Sample]]) -> float:
    found = [find(path) for path, _ in scenes]
    truth = [{"boxes": scene.boxes_xyxy, "labels": scene.labels} for _, scene in scenes]
    result = voc_ap(found, truth, 6, metric="voc12", plus_one=False)
    return float(result.ap.mean())


@pytest.mark.parametrize("threshold", [0.01, 0.3])
@pytest.mark.parametrize("sides", by_device(Sides("cpu", _WAYS)))
def test_tiles(
    sides: Sides,
    threshold: float,
    scenes: list[tuple[Path, Sample]],
    measure: Callable[..., None],
) -> None:
    """Detect objects in the tiles of two JPEG files, on one core."""
    ours = _mean_ap(_WAYS["mdssd Detector"](threshold), scenes)

    def prepare(way: str, make: Callable[[float], tiled.Find]) -> Side:
        find = make(threshold)
        mean_ap = _mean_ap(find, scenes)
        assert ours > 0.7 and ours >= mean_ap, f"mAP {ours:.3f}, {way} {mean_ap:.3f}"
        return Side(lambda: [find(path) for path, _ in scenes], more={"mean_ap": round(mean_ap, 3)})

    measure(
        sides,
        prepare,
        op="detection in tiles",
        row=f"{_IMAGES} JPEG of {_SIDE} x {_SIDE}, scores from {threshold}",
        dtype=torch.float32,
        shape=f"[{_SIDE}, {_SIDE}, 3] uint8",
        images=_IMAGES,
    )
