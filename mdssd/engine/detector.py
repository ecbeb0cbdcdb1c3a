"""From photographs to boxes: decoding, preprocessing, the network, detection output."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdssd import ops
from mdssd.data import MEAN_RGB, Preprocess, decode_image, read_image

Image: TypeAlias = NDArray[np.uint8] | str | os.PathLike[str] | bytes

STAGES = ("decode", "preprocess", "network", "detection_output")


class Detector:
    """A model together with what turns pictures into its input and its output into boxes.

    Attributes: `model`, `classes` (without background), `device`, `batch_size`, `input_size`,
    `timings` (seconds spent so far per stage: decode, preprocess, network, detection_output).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        mean: tuple[float, float, float] = MEAN_RGB,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        max_detections: int = 200,
        top_k: int = 400,
        batch_size: int = 8,
    ) -> None:
        """Take over a model: it is moved to `device` and put in evaluation mode, and stays so.

        model: images [B, 3, S, S] -> (loc [B, N, 4], logits [B, N, C]), with attributes
            `input_size`, `num_classes` and `priors` [N, 4] cxcywh. On a CPU its weights are laid
            out channels-last.
        classes: names of labels 1, 2 ...; None names them "class 1", "class 2" ...
        device: where to compute; None is where the model is.
        mean: RGB, subtracted from the pixels (0-255).
        score_threshold, nms_threshold, max_detections, top_k: as in `ops.detection_output`.
        batch_size: images that go through the network at once.
        Raises ValueError where classes and model disagree, or batch_size is below 1.
        """
        num_classes = cast(int, model.num_classes)
        if classes is None:
            classes = [f"class {k}" for k in range(1, num_classes)]
        if isinstance(classes, str) or len(classes) != num_classes - 1:
            raise ValueError(
                f"Detector: classes: expected {num_classes - 1} names, as the model scores "
                f"{num_classes} classes with background, got {classes!r}"
            )
        priors = cast(Tensor, model.priors)
        self.device = priors.device if device is None else torch.device(device)
        self.model = model.to(self.device).eval()
        if self.device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        self._dtype = torch.float32 if weights is None else weights.dtype
        self.classes = list(classes)
        self.input_size = cast(int, model.input_size)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.top_k = top_k
        self.batch_size = _check_batch_size("Detector", batch_size)
        self._preprocess = Preprocess(self.input_size, mean)
        self.timings: dict[str, float] = {}
        self.reset_timings()

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> Detector:
        """A detector from what `mdssd train` wrote: the JSON, the weights beside it, or the folder.

        options: as for `Detector`; classes and mean come from the checkpoint unless given.
        Raises CheckpointError (a ValueError) that names the file and what is wrong with it.
        """
        from mdssd.engine.checkpoint import load_checkpoint

        model, meta = load_checkpoint(path)
        options.setdefault("classes", meta["classes"])
        options.setdefault("mean", tuple(meta["mean"]))
        return cls(model, **options)

    def __call__(
        self, images: Image | Sequence[Image], batch_size: int | None = None
    ) -> list[dict[str, Tensor]]:
        """Detect objects; one dict per image, in order (a list of one for a single image).

        images: one, or a list, of uint8 arrays [H, W, 3] in RGB order, paths, or the bytes of
            image files; sizes may differ. Pixels are taken as stored (no EXIF rotation).
        batch_size: overrides the detector's.
        Gives "boxes" [K, 4] float32 xyxy in pixels of the image as given, clipped to it;
        "scores" [K] float32, falling; "labels" [K] int64 from 1: tensors on the CPU. K may be 0;
        a box without area inside the image is left out. Ties as in `ops.detection_output`.
        An empty list gives an empty list. Raises TypeError or ValueError on an array that is no
        image, DataError (a ValueError) that names the file on one that cannot be read.
        """
        size = self.batch_size if batch_size is None else batch_size
        _check_batch_size("Detector", size)
        one = isinstance(images, (np.ndarray, str, os.PathLike, bytes, bytearray, memoryview))
        sources: list[Any] = [images] if one else self._list(images)
        results = []
        for start in range(0, len(sources), size):
            arrays = [
                self.read(source, f"images[{start + i}]")
                for i, source in enumerate(sources[start : start + size])
            ]
            results += self._detect(arrays)
        return results

    def read(self, source: Image, name: str = "image") -> NDArray[np.uint8]:
        """The pixels [H, W, 3] uint8 RGB of an array (checked), a path or encoded bytes.

        name: what messages call it, unless it is a path. The time counts as "decode".
        """
        with self._timed("decode"):
            if isinstance(source, (bytes, bytearray, memoryview)):
                return decode_image(bytes(source), name)
            if isinstance(source, (str, os.PathLike)):
                return read_image(source)
            if not isinstance(source, np.ndarray):
                raise TypeError(
                    f"Detector: {name}: expected a numpy array, a path or bytes, "
                    f"got {type(source).__name__}"
                )
            if source.dtype != np.uint8:
                raise TypeError(
                    f"Detector: {name}: expected dtype uint8 (0-255), got {source.dtype}"
                )
            if source.ndim != 3 or source.shape[2] != 3:
                raise ValueError(
                    f"Detector: {name}: expected shape [H, W, 3] in RGB order, "
                    f"got {list(source.shape)}"
                )
            if not source.size:
                raise ValueError(f"Detector: {name}: is empty, its shape is {list(source.shape)}")
            return source

    def reset_timings(self) -> None:
        """Set the seconds of every stage to 0."""
        self.timings = dict.fromkeys(STAGES, 0.0)

    def _list(self, images: Any) -> list[Any]:
        if isinstance(images, Tensor) or not hasattr(images, "__iter__"):
            raise TypeError(
                "Detector: images: expected a numpy array, a path, bytes or a list of them, "
                f"got {type(images).__name__}"
            )
        return list(images)

    @torch.inference_mode()
    def _detect(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, Tensor]]:
        if self.model.training:
            self.model.eval()
        with self._timed("preprocess"):
            batch = torch.stack([self._preprocess(image) for image in images])  # [B, 3, S, S]
            batch = batch.to(self.device, self._dtype)
            if self.device.type == "cpu":
                batch = batch.contiguous(memory_format=torch.channels_last)
        with self._timed("network"):
            loc, logits = self.model(batch)
        with self._timed("detection_output"):
            found = ops.detection_output(
                loc,
                logits,
                cast(Tensor, self.model.priors),
                score_threshold=self.score_threshold,
                nms_threshold=self.nms_threshold,
                top_k=self.top_k,
                max_detections=self.max_detections,
            )
            boxes, scores = found.boxes.float().cpu(), found.scores.float().cpu()
            labels, counts = found.labels.cpu(), found.count.tolist()
            return [
                _in_pixels(boxes[i, :n], scores[i, :n], labels[i, :n], image.shape)
                for i, (n, image) in enumerate(zip(counts, images, strict=True))
            ]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            # A GPU returns before it is done; without this its time would land in a later stage.
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.timings[stage] += time.perf_counter() - start


def _in_pixels(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """From 0-1 to pixels of an image of `shape` [H, W, 3], clipped, without empty boxes."""
    height, width = shape[:2]
    edge = torch.tensor([width, height, width, height], dtype=torch.float32)
    pixels = (boxes_xyxy * edge).clamp(min=torch.zeros(4), max=edge)
    kept = (pixels[:, 2:] > pixels[:, :2]).all(dim=1)
    return {"boxes": pixels[kept], "scores": scores[kept], "labels": labels[kept]}


def _check_batch_size(where: str, batch_size: int) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{where}: batch_size: expected an int of 1 or more, got {batch_size!r}")
    return batch_size
