"""`Detector`: from photographs to boxes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdssd import ops
from mdssd.data import MEAN_RGB, DataError, Preprocess
from mdssd.data.ahead import read_ahead
from mdssd.data.images import ImageLimits
from mdssd.detection.reading import (
    Image,
    Reader,
    ReadImage,
    listed,
    name_of,
    next_batch,
    no_detections,
    read_pixels,
)
from mdssd.detection.runtime import STAGES, DetectionLimits, Pipeline, StageTimes
from mdssd.detection.runtimes import check_runtime, make_runtime, network_dtype
from mdssd.system import distributed
from mdssd.system.devices import best_device
from mdssd.system.memory import release_memory
from mdssd.weights.checkpoint import load_checkpoint


class Streamed(NamedTuple):
    """The result of `Detector.stream` for one image.

    Attributes:
        source: the image as it was passed.
        size: its (height, width); (0, 0) if it cannot be read.
        found: boxes, scores and labels, as `Detector.__call__` returns them; empty if the image
            cannot be read.
        image: its pixels, if they were asked for.
        error: why the image cannot be read, or None.
        guess: what reading it had to guess; "" if nothing.
    """

    source: Any
    size: tuple[int, int]
    found: dict[str, Tensor]
    image: NDArray[np.uint8] | None = None
    error: DataError | None = None
    guess: str = ""


class Detector:
    """Finds objects in images: a model, with its preprocessing and post-processing.

    The model is moved to `device`, put in evaluation mode, and stays so. Its weights are laid
    out channels-last.

    Args:
        model: images [B, 3, H, W] -> (loc [B, N, 4], logits [B, N, C]), with the attributes
            `input_size`, `num_classes` and `priors` [N, 4] cxcywh.
        classes: names of labels 1, 2 ...; None names them "class 1", "class 2" ...
        device: where to compute; None is the device of the model. A GPU also resizes the images
            of a call, to within one level of what OpenCV does on a CPU and in a stream's workers.
        mean: the mean of each channel (RGB, 0-255), which is subtracted from the pixels.
        score_threshold, nms_threshold, max_detections, top_k: see `ops.detection_output`.
        batch_size: how many images go through the network at once.
        runtime: how the network runs. "eager": PyTorch. "compile": torch.compile, on a CPU with
            frozen weights. "openvino": OpenVINO, on a CPU. "graph": on an NVIDIA GPU everything
            from pixels to detections as a CUDA graph; a stream then uploads images while the GPU
            computes. Any preparation happens at the first call, with the weights and the
            operator backend of that moment.
        dtype: the type of the computation: torch.float32, torch.bfloat16 or, on a GPU,
            torch.float16. The model is converted. None keeps its own type.

    Attributes:
        model, classes, device, batch_size: as above.
        input_size: side of the network's input, in pixels, or (width, height) if it is no square.
        limits: which image files are accepted, an `ImageLimits`. It can be changed.
        upright: whether the EXIF orientation of images is applied (the default). It can be changed.
        timings: seconds spent so far per stage: decode, preprocess, network, detection_output. A
            GPU's time counts towards detection_output, which fetches the results, unless the calls
            are made in `with detector.separate_stages():`. With runtime "graph" it all counts
            towards network.

    Raises:
        ValueError: classes and model disagree, batch_size is below 1, or runtime, device and dtype
            do not go together.
        ImportError: the runtime's package is not installed.

    Example:
        >>> import mdssd, numpy as np
        >>> detector = mdssd.Detector(mdssd.ssd300(3, width=0.0625), classes=["cat", "dog"])
        >>> photo = np.zeros((120, 160, 3), np.uint8)
        >>> (found,) = detector(photo)
        >>> sorted(found)
        ['boxes', 'labels', 'scores']
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
        self.limits = ImageLimits()
        self.upright = True
        self.classes = _class_names(classes, cast(int, model.num_classes))
        priors = cast(Tensor, model.priors)
        self.device = priors.device if device is None else torch.device(device)
        weights = next((p for p in model.parameters() if p.is_floating_point()), None)
        if dtype is None:
            dtype = torch.float32 if weights is None else weights.dtype
        check_runtime(runtime, self.device, dtype)
        _check_batch_size("Detector", batch_size)
        # A copy, because boxes need the precision that a conversion takes from the model's priors.
        own_priors = priors.to(self.device).clone()
        input_dtype = network_dtype(runtime, dtype)
        self.model = model.to(self.device, input_dtype).eval()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input_size: int | tuple[int, int] = cast(Any, model.input_size)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.top_k = top_k
        self.batch_size = batch_size
        self._preprocess = Preprocess(self.input_size, mean)
        self._times = StageTimes(self.device)
        self._pipeline = Pipeline(self.model, own_priors, mean, self.input_size, input_dtype)
        self._runtime = make_runtime(
            runtime, self.model, self._pipeline, dtype, batch_size, self._times
        )

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> Detector:
        """Build a detector from a checkpoint.

        Args:
            path: the checkpoint's JSON, the weights file beside it, or the folder of a run.
            options: the keywords of `Detector`. Classes and mean come from the checkpoint unless
                they are passed. Without a device it is the best that there is, see `best_device`.

        Raises:
            CheckpointError: a ValueError that names the file and the fault.

        Example:
            >>> import tempfile, mdssd
            >>> from mdssd.weights.checkpoint import save_checkpoint
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     save_checkpoint(
            ...         f"{folder}/last.json",
            ...         mdssd.ssd300(2, width=0.0625),
            ...         classes=["cell"],
            ...         mean=(123, 117, 104),
            ...         extra={},
            ...     )
            ...     detector = mdssd.Detector.from_checkpoint(folder)
            >>> detector.classes
            ['cell']
        """
        model, meta = load_checkpoint(path)
        options.setdefault("classes", meta["classes"])
        options.setdefault("mean", tuple(meta["mean"]))
        if options.get("device") is None:
            options["device"] = best_device()
        return cls(model, **options)

    def __call__(
        self, images: Image | Sequence[Image], batch_size: int | None = None
    ) -> list[dict[str, Tensor]]:
        """Detect objects in one image or in a list of images.

        Args:
            images: uint8 arrays [H, W, 3] in RGB order, images of Pillow, paths, or the bytes of
                image files; one or a list. Sizes may differ. Files and images of Pillow are
                turned upright as their EXIF orientation says; so are their boxes.
            batch_size: overrides the detector's.

        Returns:
            One dict per image, in order (a list of one for a single image), of tensors on the CPU:
            "boxes" [K, 4] float32 xyxy in pixels of the image, clipped to it; "scores" [K]
            float32, in descending order; "labels" [K] int64, from 1. K may be 0. A box without
            area inside the image is left out. Ties are broken as in `ops.detection_output`. An
            empty list returns an empty list.

        Raises:
            TypeError, ValueError: an array is not an image.
            DataError: a ValueError that names a file that cannot be read.

        Example:
            >>> import mdssd, numpy as np
            >>> detector = mdssd.Detector(mdssd.ssd300(2, width=0.0625))
            >>> photos = [np.zeros((90, 120, 3), np.uint8), np.zeros((60, 60, 3), np.uint8)]
            >>> [found["boxes"].shape[1] for found in detector(photos)]
            [4, 4]
        """
        size = self.batch_size if batch_size is None else batch_size
        _check_batch_size("Detector", size)
        sources = listed(images)
        results = []
        for start in range(0, len(sources), size):
            pixels, sizes = [], []
            for i, source in enumerate(sources[start : start + size], start):
                image = self.read(source, f"images[{i}]")
                sizes.append(image.shape[:2])
                if self.device.type == "cpu":  # a GPU resizes the images itself
                    with self._times.stage("preprocess"):
                        image = self._preprocess.warp(image)
                pixels.append(image)
            results += self._finish(self._start(pixels), sizes)
        return results

    def stream(
        self,
        images: Iterable[Image],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        with_images: bool = False,
    ) -> Generator[Streamed, None, None]:
        """Detect objects in any number of images, which worker processes read ahead.

        The images are taken as they are needed, so memory does not grow with their number. An
        image that cannot be read, or that kills the process that reads it, gives a result with an
        error, and the others continue. Closing the iterator ends the workers. Of the reading, only
        the time spent waiting for the workers counts as "decode".

        Args:
            images: an iterable of images as in `__call__`.
            batch_size: overrides the detector's. Results come once that many images are read.
            workers: processes that read and resize; 0 does it in this process. None is one less
                than the cores, at most 2, or at most 8 for a detector on a GPU. Under torchrun the
                cores are shared among the processes of the machine.
            with_images: whether to return the pixels as well.

        Returns:
            A generator of one `Streamed` per image, in order.

        Raises:
            TypeError, ValueError: an argument or an array is not as described.

        Example:
            >>> import mdssd, numpy as np
            >>> detector = mdssd.Detector(mdssd.ssd300(2, width=0.0625))
            >>> photos = (np.zeros((90, 120, 3), np.uint8) for _ in range(3))
            >>> [result.size for result in detector.stream(photos, workers=0)]
            [(90, 120), (90, 120), (90, 120)]
        """
        size = self.batch_size if batch_size is None else batch_size
        _check_batch_size("Detector.stream", size)
        if workers is None:
            cores = (os.cpu_count() or 1) // distributed.processes_here()
            workers = max(0, min(2 if self.device.type == "cpu" else 8, cores - 1))
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"Detector.stream: workers: expected an int from 0, got {workers!r}")
        if isinstance(images, (str, bytes, np.ndarray)) or not isinstance(images, Iterable):
            raise TypeError(
                "Detector.stream: images: expected an iterable of numpy arrays, Pillow images, "
                f"paths or bytes, got {type(images).__name__}"
            )
        return self._stream(images, size, workers, with_images)

    def _stream(
        self, images: Iterable[Image], size: int, workers: int, with_images: bool
    ) -> Generator[Streamed, None, None]:
        named = ((image, name_of(image, f"images[{i}]")) for i, image in enumerate(images))
        reader = Reader(self._preprocess, with_images, self.limits, self.upright)
        under_way: deque[tuple[list[tuple[Any, ReadImage | DataError]], Any]] = deque()
        with closing(read_ahead(reader, named, workers, size + 2 * workers)) as items:
            finished = reader.finish(items)
            more = True
            while more:
                with self._times.stage("decode"):
                    batch = next_batch(finished, size)
                if more := bool(batch):
                    pixels = [read.pixels for _, read in batch if isinstance(read, ReadImage)]
                    under_way.append((batch, self._start(pixels)))
                while len(under_way) >= self._runtime.under_way or (under_way and not more):
                    yield from self._streamed(*under_way.popleft(), with_images)

    def _streamed(
        self, batch: list[tuple[Any, ReadImage | DataError]], ticket: Any, with_images: bool
    ) -> Iterator[Streamed]:
        sizes = [read.size for _, read in batch if isinstance(read, ReadImage)]
        results = iter(self._finish(ticket, sizes))
        while batch:
            source, read = batch.pop(0)  # so that its pixels do not outlive its turn
            if isinstance(read, DataError):
                yield Streamed(source, (0, 0), no_detections(), error=read)
                continue
            streamed = Streamed(source, read.size, next(results), read.image, guess=read.guess)
            if not (with_images and read.large):
                yield streamed
                continue
            release_memory()
            try:
                yield streamed._replace(image=self.read(source, read.large))
            except DataError as error:  # the file has changed in the meantime
                yield Streamed(source, (0, 0), no_detections(), error=error)
            release_memory()

    def read(self, source: Image, name: str = "image") -> NDArray[np.uint8]:
        """Return the pixels [H, W, 3] uint8 RGB of any image that `__call__` takes.

        Args:
            source: the image.
            name: its name in messages, unless it is a path.

        The time counts as "decode". Raises as `__call__` does.
        """
        with self._times.stage("decode"):
            return read_pixels(source, name, self.limits, self.upright)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far in each stage."""
        return self._times.seconds

    def reset_timings(self) -> None:
        """Set the seconds of every stage to 0."""
        self._times.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def separate_stages(self) -> Iterator[None]:
        """In this block wait for the GPU after each stage, so that `timings` tell them apart.

        Waiting costs speed, so only `evaluate` and `detect`, which print the times, ask for it. It
        changes nothing on a CPU or with the runtime "graph".
        """
        before, self._times.separate = self._times.separate, True
        try:
            yield
        finally:
            self._times.separate = before

    @torch.inference_mode()
    def _start(self, pixels: Sequence[NDArray[np.uint8]]) -> Any:
        """Begin a batch of images [S, S, 3], or of any size on a GPU; return `_finish`'s ticket."""
        if self.model.training:
            self.model.eval()
        if not pixels:
            return None
        limits = DetectionLimits(
            self.score_threshold, self.nms_threshold, self.top_k, self.max_detections
        )
        return self._runtime.start(pixels, limits)

    @torch.inference_mode()
    def _finish(self, ticket: Any, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return the results of a batch, for images of these heights and widths."""
        if ticket is None:
            return []
        found = self._runtime.finish(ticket)
        with self._times.stage("detection_output"):
            return [_in_pixels(found, i, size) for i, size in enumerate(sizes)]


def _class_names(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    if classes is None:
        return [f"class {k}" for k in range(1, num_classes)]
    if isinstance(classes, str) or len(classes) != num_classes - 1:
        raise ValueError(
            f"Detector: classes: expected {num_classes - 1} names, as the model scores "
            f"{num_classes} classes with background, got {classes!r}"
        )
    return list(classes)


def _in_pixels(found: ops.Detections, i: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Convert image i's boxes from 0-1 to pixels, clipped to its size, without empty boxes."""
    count = int(found.count[i])
    height, width = size
    edge = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = (found.boxes[i, :count].float() * edge).clamp(min=torch.zeros(4), max=edge)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {
        "boxes": boxes[kept],
        "scores": found.scores[i, :count].float()[kept],
        "labels": found.labels[i, :count][kept],
    }


def _check_batch_size(where: str, batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{where}: batch_size: expected an int of 1 or more, got {batch_size!r}")
