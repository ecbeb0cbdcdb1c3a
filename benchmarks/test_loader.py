"""Benchmark the training loader, from JPEG files to augmented samples, on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks.peers import augmentation
from benchmarks.rows import Sides, by_device
from mdssd.data import Augmentation, SyntheticScenes, TrainingSet, subtract_mean
from mdssd.data.images import read_bytes
from mdssd.data.photos import PhotoDataset
from mdssd.data.sample import BoxRow

_SIZE = 300
_IMAGES = 32
_SIDES = (300, 640, 1280)


class _Photos(PhotoDataset):
    """A data set of generated scenes in JPEG files of quality 90, with about ten boxes each."""

    def __init__(self, folder: Path, side: int) -> None:
        super().__init__(f"JPEG of {side} x {side}")
        least, most = (max(1, round(n * (300 / side) ** 2)) for n in (8, 12))
        sizes = (8.0 * side / 300, 40.0 * side / 300)
        scenes = SyntheticScenes(_IMAGES, 0, side, objects=(least, most), sizes=sizes)
        self.classes = scenes.classes
        for scene in scenes:
            path = folder / f"{scene.image_id}.jpg"
            bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
            rows = zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True)
            boxes = [BoxRow(tuple(box), label) for box, label in rows]
            self.add_image(scene.image_id, path, boxes, None, str(path))


@pytest.fixture(scope="module", params=_SIDES)
def photos(request: Any, tmp_path_factory: pytest.TempPathFactory) -> _Photos:
    return _Photos(tmp_path_factory.mktemp("jpeg"), request.param)


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


def _ours(**options: Any) -> Callable[[_Photos], Callable[[int], Any]]:
    raw = options.pop("raw", False)
    return lambda photos: TrainingSet(photos, Augmentation(_SIZE, raw=raw), **options).__getitem__


def _peer(make: Callable[[int], augmentation.Load]) -> Callable[[_Photos], Callable[[int], Any]]:
    def of(photos: _Photos) -> Callable[[int], Any]:
        load = make(_SIZE)

        def item(index: int) -> Any:
            truth = photos.annotation(index)
            data = read_bytes(photos.image_path(index))
            return load(data, truth.boxes_xyxy, truth.labels, index)

        return item

    return of


_WAYS = {
    "mdssd loader": _ours(),
    "mdssd loader, uint8": _ours(raw=True),
    "mdssd whole JPEG": _ours(reduced=False),
    "OpenCV by hand": _peer(augmentation.opencv_by_hand),
    "torchvision v2": _peer(augmentation.torchvision_v2),
}


@pytest.mark.parametrize("sides", by_device(Sides("cpu", _WAYS)))
def test_loader(sides: Sides, photos: _Photos, measure: Callable[..., None]) -> None:
    """Augment 32 JPEG files as SSD does, to 300 x 300."""
    side = cv2.imread(str(photos.image_path(0))).shape[0]

    def prepare(way: str, make: Callable[[_Photos], Callable[[int], Any]]) -> Callable[[], Any]:
        item = make(photos)
        _check(way, item, photos)
        return lambda: [item(k) for k in range(_IMAGES)]

    measure(
        sides,
        prepare,
        op="loader",
        row=f"{side} x {side}",
        dtype=torch.float32,
        shape=f"[{_IMAGES}, 3, {_SIZE}, {_SIZE}]",
        images=_IMAGES,
    )


def _smooth(image: torch.Tensor) -> np.ndarray:
    return cv2.blur(image.permute(1, 2, 0).numpy(), (11, 11))


def _check(way: str, item: Callable[[int], Any], photos: _Photos) -> None:
    """Check shapes and ranges; compare this project's results with those from the whole image."""
    whole = TrainingSet(photos, Augmentation(_SIZE), reduced=False)
    kept = 0
    for k in range(_IMAGES):
        image, boxes, labels = item(k)
        if way == "mdssd loader, uint8":
            image = subtract_mean(image)
        assert image.shape == (3, _SIZE, _SIZE) and image.dtype == torch.float32
        assert len(boxes) == len(labels) and ((boxes >= 0) & (boxes <= 1)).all()
        kept += len(labels)
        if way.startswith("mdssd"):
            want, want_boxes, want_labels = whole[k]
            assert torch.equal(labels, want_labels)
            if way == "mdssd whole JPEG":
                assert torch.equal(image, want) and torch.equal(boxes, want_boxes)
            # A reduced image moves a crop by at most half a pixel; blurring averages pixel noise.
            torch.testing.assert_close(boxes, want_boxes, rtol=0, atol=0.5 / _SIZE + 1e-6)
            assert np.abs(_smooth(image) - _smooth(want)).mean() < 1
    assert kept > _IMAGES
