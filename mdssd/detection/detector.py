"""From photographs to boxes: decoding, preprocessing, the network, detection output."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdssd import ops
from mdssd.data import MEAN_RGB, DataError, Preprocess, decode_image, read_image
from mdssd.data.ahead import read_ahead
from mdssd.data.preprocess import to_tensor
from mdssd.detection.cuda_graphs import Graphs
from mdssd.detection.runtimes import check_runtime, make_network

Image: TypeAlias = NDArray[np.uint8] | str | os.PathLike[str] | bytes

STAGES = ("decode", "preprocess", "network", "detection_output")


class Streamed(NamedTuple):
    """What `Detector.stream` gives for an image.

    source: the image as it was given. size: its (height, width). found: as of a call. image: its
    pixels, where they were asked for. error: what is wrong with an image that cannot be read;
    found is then empty and size (0, 0).
    """

    source: Any
    size: tuple[int, int]
    found: dict[str, Tensor]
    image: NDArray[np.uint8] | None = None
    error: DataError | None = None


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
        runtime: str = "eager",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take over a model: it is moved to `device` and put in evaluation mode, and stays so.

        model: images [B, 3, S, S] -> (loc [B, N, 4], logits [B, N, C]), with attributes
            `input_size`, `num_classes` and `priors` [N, 4] cxcywh. Its weights are laid out
            channels-last.
        classes: names of labels 1, 2 ...; None names them "class 1", "class 2" ...
        device: where to compute; None is where the model is. A GPU also resizes the images of a
            call, to within one level of what OpenCV does on a CPU and in a stream's workers.
        mean: RGB, subtracted from the pixels (0-255).
        score_threshold, nms_threshold, max_detections, top_k: as in `ops.detection_output`.
        batch_size: images that go through the network at once.
        runtime: what runs the network. "eager": PyTorch. "compile": torch.compile, on a CPU with
            the weights frozen. "openvino": on a CPU, where the package openvino is installed.
            "graph": on an NVIDIA GPU, all from pixels to detections as a CUDA graph; a stream is
            then copied up while the GPU computes, and all its time counts as "network". What a
            runtime has to prepare it prepares at the first call, with the weights and the operator
            backend of that moment.
        dtype: of the computation: torch.float32, torch.bfloat16 or, on a GPU, torch.float16; the
            model is converted. None is the model's own.
        Raises ValueError where classes and model disagree, batch_size is below 1, or runtime,
        device and dtype do not go together; ImportError where the runtime is not installed.
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
        weights = next((p for p in model.parameters() if p.is_floating_point()), None)
        if dtype is None:
            dtype = torch.float32 if weights is None else weights.dtype
        check_runtime(runtime, self.device, dtype)
        _check_batch_size("Detector", batch_size)
        # OpenVINO takes the weights as float32 and rounds them itself.
        self._dtype = torch.float32 if runtime == "openvino" else dtype
        # Of their own, because boxes need the precision that a conversion takes from the model's.
        self._priors = priors.to(self.device).clone()
        self.model = model.to(self.device, self._dtype).eval()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = make_network(self.model, runtime, self.device, dtype, batch_size)
        self._runtime = runtime
        self._graphs: dict[tuple[Any, ...], Graphs] = {}
        self.classes = list(classes)
        self.input_size = cast(int, model.input_size)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.top_k = top_k
        self.batch_size = batch_size
        self._preprocess = Preprocess(self.input_size, mean)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)[:, None, None]
        self.timings: dict[str, float] = {}
        self.reset_timings()

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> Detector:
        """A detector from what `mdssd train` wrote: the JSON, the weights beside it, or the folder.

        options: as for `Detector`; classes and mean come from the checkpoint unless given.
        Raises CheckpointError (a ValueError) that names the file and what is wrong with it.
        """
        from mdssd.weights.checkpoint import load_checkpoint

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
            pixels = arrays
            if self.device.type == "cpu":  # a GPU resizes by itself
                with self._timed("preprocess"):
                    pixels = [self._preprocess.warp(array) for array in arrays]
            results += self._finish(self._start(pixels), [array.shape[:2] for array in arrays])
        return results

    def stream(
        self,
        images: Iterable[Image],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        with_images: bool = False,
    ) -> Generator[Streamed, None, None]:
        """Detect in any number of images, read ahead by worker processes; one result each.

        images: as for a call, taken as they are needed: memory does not grow with their number.
            Results come in the same order. An image that cannot be read, or that kills the
            process that reads it, gives a result with its error, and the others go on.
        batch_size: overrides the detector's. Results come once that many images have been read.
        workers: processes that read and resize; 0 does it here. None is one less than the cores,
            at most 2, for a detector on a GPU at most 8.
        with_images: give the pixels as well.
        Only waiting for the workers counts as "decode". Closing the iterator ends them. Raises
        TypeError or ValueError on an array that is no image.
        """
        size = self.batch_size if batch_size is None else batch_size
        _check_batch_size("Detector.stream", size)
        if workers is None:
            workers = min(2 if self.device.type == "cpu" else 8, (os.cpu_count() or 1) - 1)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"Detector.stream: workers: expected an int from 0, got {workers!r}")
        if isinstance(images, (str, bytes, np.ndarray)) or not isinstance(images, Iterable):
            raise TypeError(
                "Detector.stream: images: expected an iterable of numpy arrays, paths or bytes, "
                f"got {type(images).__name__}"
            )
        return self._stream(images, size, workers, with_images)

    def _stream(
        self, images: Iterable[Image], size: int, workers: int, with_images: bool
    ) -> Generator[Streamed, None, None]:
        named = ((image, _name(image, f"images[{i}]")) for i, image in enumerate(images))
        reader = _Reader(self._preprocess, with_images)
        under_way: deque[tuple[list[tuple[Any, _Read | DataError]], Any]] = deque()
        most = 2 if self._runtime == "graph" else 1
        with closing(read_ahead(reader, named, workers, size + 2 * workers)) as items:
            while True:
                with self._timed("decode"):
                    batch = _next_batch(items, size)
                if batch:
                    pixels = [read.pixels for _, read in batch if isinstance(read, _Read)]
                    under_way.append((batch, self._start(pixels)))
                while len(under_way) >= most or (under_way and not batch):
                    yield from self._streamed(*under_way.popleft())
                if not batch:
                    return

    def _streamed(
        self, batch: Sequence[tuple[Any, _Read | DataError]], ticket: Any
    ) -> Iterator[Streamed]:
        sizes = [read.size for _, read in batch if isinstance(read, _Read)]
        results = iter(self._finish(ticket, sizes))
        for source, read in batch:
            if isinstance(read, DataError):
                yield Streamed(source, (0, 0), _nothing(), error=read)
            else:
                yield Streamed(source, read.size, next(results), read.image)

    def read(self, source: Image, name: str = "image") -> NDArray[np.uint8]:
        """The pixels [H, W, 3] uint8 RGB of an array (checked), a path or encoded bytes.

        name: what messages call it, unless it is a path. The time counts as "decode".
        """
        with self._timed("decode"):
            return _pixels(source, name)

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
    def _start(self, pixels: Sequence[NDArray[np.uint8]]) -> Any:
        """Begin with images [S, S, 3], for a GPU of any size; give what `_finish` takes."""
        if self.model.training:
            self.model.eval()
        if not pixels:
            return None
        if self._runtime == "graph":
            with self._timed("network"):
                return self._graph().start(pixels)
        with self._timed("preprocess"):
            batch = self._input(pixels)
        with self._timed("network"):
            loc, logits = self._network(batch)
        with self._timed("detection_output"):
            return self._detections(loc, logits)

    @torch.inference_mode()
    def _finish(self, ticket: Any, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The results of what `_start` began, for images of these heights and widths."""
        if ticket is None:
            return []
        if self._runtime == "graph":
            with self._timed("network"):
                ticket = Graphs.finish(ticket)
        with self._timed("detection_output"):
            boxes, scores, labels, counts = (tensor.cpu() for tensor in ticket)
            return [
                _in_pixels(boxes[i, :n].float(), scores[i, :n].float(), labels[i, :n], size)
                for i, (n, size) in enumerate(zip(counts.tolist(), sizes, strict=True))
            ]

    def _input(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """[S, S, 3] each -> what the network takes: [B, 3, S, S], its channels last in memory."""
        if self.device.type == "cpu":
            return to_tensor(np.stack(pixels), self._preprocess.mean).to(self._dtype)
        return self._normalized(self._uploaded(pixels))

    def _uploaded(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """[H, W, 3] each -> [B, S, S, 3] on the device, which resizes them."""
        size = (self.input_size, self.input_size)
        images = (torch.from_numpy(image).to(self.device) for image in pixels)
        return torch.stack([ops.resize(image, size) for image in images])

    def _normalized(self, pixels: Tensor) -> Tensor:
        return (pixels.permute(0, 3, 1, 2) - self._mean).to(self._dtype)

    def _detections(self, loc: Tensor, logits: Tensor) -> ops.Detections:
        return ops.detection_output(
            loc,
            logits,
            self._priors,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            top_k=self.top_k,
            max_detections=self.max_detections,
        )

    def _graph(self) -> Graphs:
        # A graph has these numbers in it.
        settings = (self.score_threshold, self.nms_threshold, self.top_k, self.max_detections)
        if settings not in self._graphs:
            self._graphs = {
                settings: Graphs(
                    lambda pixels: self._detections(*self._network(self._normalized(pixels))),
                    self.input_size,
                    self.batch_size,
                    self.device,
                )
            }
        return self._graphs[settings]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            # A GPU returns before it is done; without this its time would land in a later stage.
            if self.device.type == "cuda" and self._runtime != "graph":
                torch.cuda.synchronize(self.device)
            self.timings[stage] += time.perf_counter() - start


class _Read(NamedTuple):
    """An image that was read: (height, width), its pixels as the network's input, and all."""

    size: tuple[int, int]
    pixels: NDArray[np.uint8]  # [S, S, 3]
    image: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Reader:
    """Reads and resizes; worker processes get a copy of it."""

    preprocess: Preprocess
    with_images: bool

    def __call__(self, source: Image, name: str) -> _Read:
        image = _pixels(source, name)
        height, width = image.shape[:2]
        pixels = self.preprocess.warp(image)
        return _Read((height, width), pixels, image if self.with_images else None)


def _pixels(source: Image, name: str) -> NDArray[np.uint8]:
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
        raise TypeError(f"Detector: {name}: expected dtype uint8 (0-255), got {source.dtype}")
    if source.ndim != 3 or source.shape[2] != 3:
        raise ValueError(
            f"Detector: {name}: expected shape [H, W, 3] in RGB order, got {list(source.shape)}"
        )
    if not source.size:
        raise ValueError(f"Detector: {name}: is empty, its shape is {list(source.shape)}")
    return source


def _next_batch(
    items: Iterable[tuple[Any, _Read | DataError]], size: int
) -> list[tuple[Any, _Read | DataError]]:
    """The next items, so many that `size` images are among them: other sizes cost memory.

    Not without end, though: where most cannot be read, that is to be seen soon.
    """
    batch: list[tuple[Any, _Read | DataError]] = []
    good = 0
    for item in items:
        batch.append(item)
        good += isinstance(item[1], _Read)
        if good == size or len(batch) == 4 * size:
            break
    return batch


def _name(source: Image, otherwise: str) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else otherwise


def _nothing() -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    }


def _in_pixels(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]
) -> dict[str, Tensor]:
    """From 0-1 to pixels of an image of `size` (height, width), clipped, without empty boxes."""
    height, width = size
    edge = torch.tensor([width, height, width, height], dtype=torch.float32)
    pixels = (boxes_xyxy * edge).clamp(min=torch.zeros(4), max=edge)
    kept = (pixels[:, 2:] > pixels[:, :2]).all(dim=1)
    return {"boxes": pixels[kept], "scores": scores[kept], "labels": labels[kept]}


def _check_batch_size(where: str, batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{where}: batch_size: expected an int of 1 or more, got {batch_size!r}")
