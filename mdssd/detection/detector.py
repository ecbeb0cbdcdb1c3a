"""`Detector`: from photographs to boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdssd.data import MEAN_RGB, DataError, Preprocess
from mdssd.data.ahead import read_ahead
from mdssd.data.images import ImageLimits
from mdssd.data.tiles import Window, make_tiling
from mdssd.detection.arguments import check_batch_size, check_stream, class_names
from mdssd.detection.quantized import load_network, runtime_of, usual_device
from mdssd.detection.reading import (
    Image,
    Reader,
    ReadImage,
    Streamed,
    listed,
    name_of,
    no_detections,
    read_pixels,
)
from mdssd.detection.runtime import STAGES, DetectionLimits, Pipeline, StageTimes
from mdssd.detection.runtimes import check_runtime, make_runtime, network_dtype
from mdssd.detection.tiled import Batches, Found, Shown, put_together, tiles
from mdssd.models.folding import fold_batch_norm
from mdssd.system.memory import release_memory

T = TypeVar("T")


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
        batch_size: how many images or tiles go through the network at once.
        runtime: how the network runs. "eager": PyTorch. "compile": torch.compile, on a CPU with
            frozen weights. "openvino": OpenVINO, on a CPU; int8 networks always run in it.
            "graph": on an NVIDIA GPU everything from pixels to detections as a CUDA graph; a
            stream then uploads images while the GPU computes. Any preparation happens at the first
            call, with the weights and the operator backend of that moment.
        dtype: the type of the computation: torch.float32, torch.bfloat16 or, on a GPU,
            torch.float16. The model is converted. None keeps its own type.
        tile, overlap, tile_scale, with_whole: divide images into tiles, each of which goes through
            the network, for objects that are small in large images: see `data.tiles.make_tiling`.
            `put_together` says how the detections of tiles are merged. `max_detections` is then
            the greatest number in a tile. None, the default, shows each image as a whole.

    Attributes:
        model, classes, device, batch_size: as above.
        input_size: side of the network's input, in pixels, or (width, height) if it is no square.
        limits: which image files are accepted, an `ImageLimits`. It can be changed.
        tiling: how images are divided into tiles, or None. It can be changed. A TIFF file with
            more pixels than the limit is then read by windows, whatever its size.
        on_tile: a function that is called before each tile, with the number of the image's tiles
            before it and of all, or None. It can be changed. What it raises ends the work.
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
        tile: int | tuple[int, int] | str | None = None,
        overlap: float = 0.2,
        tile_scale: float = 1.0,
        with_whole: bool = False,
    ) -> None:
        self.limits = ImageLimits()
        self.upright = True
        self.on_tile: Callable[[int, int], None] | None = None
        self.classes = class_names(classes, cast(int, model.num_classes))
        priors = cast(Tensor, model.priors)
        self.device = priors.device if device is None else torch.device(device)
        weights = next((p for p in model.parameters() if p.is_floating_point()), None)
        if dtype is None:
            dtype = torch.float32 if weights is None else weights.dtype
        runtime = runtime_of(model, runtime)
        check_runtime(runtime, self.device, dtype)
        check_batch_size("Detector", batch_size)
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
        self.tiling = make_tiling(
            tile, self.input_size, overlap=overlap, scale=tile_scale, with_whole=with_whole
        )
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
                they are passed. Without a device it is the best that there is for the network.

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
        model, meta = load_network(path)
        fold_batch_norm(model.eval())  # which is faster, and the same up to rounding
        options = {"classes": meta["classes"], "mean": tuple(meta["mean"]), **options}
        options["device"] = options.get("device") or usual_device(model)
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
        check_batch_size("Detector", size)
        items = (
            (source, self._read_now(source, f"images[{i}]"))
            for i, source in enumerate(listed(images))
        )
        return [self._found(image) for image in self._batches(size).run(items, self._windows)]

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
        check_batch_size("Detector.stream", size)
        workers = check_stream(images, workers, self.device)
        return self._stream(images, size, workers, with_images)

    def _stream(
        self, images: Iterable[Image], size: int, workers: int, with_images: bool
    ) -> Generator[Streamed, None, None]:
        named = ((image, name_of(image, f"images[{i}]")) for i, image in enumerate(images))
        resize = self._preprocess if self.tiling is None else None
        reader = Reader(resize, with_images, self.limits, self.upright)
        depth = workers + 1 if resize is None else size + 2 * workers
        with closing(read_ahead(reader, named, workers, depth)) as items:
            read = self._timed(reader.finish(items))
            for image in self._batches(size).run(read, self._windows):
                yield from self._streamed(image, with_images)

    def _timed(self, items: Iterator[T]) -> Iterator[T]:
        """Count the time that is spent waiting for items as "decode"."""
        while True:
            with self._times.stage("decode"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _streamed(self, image: Shown, with_images: bool) -> Iterator[Streamed]:
        source, read = image.source, image.read
        if isinstance(read, DataError):
            yield Streamed(source, (0, 0), no_detections(), error=read)
            return
        streamed = Streamed(source, read.size, self._found(image), read.image, guess=read.guess)
        if not (with_images and read.large):
            yield streamed
            return
        release_memory()
        try:
            yield streamed._replace(image=self._large(source, read))
        except DataError as error:  # the file has changed in the meantime
            yield Streamed(source, (0, 0), no_detections(), error=error)
        release_memory()

    def _large(self, source: Image, read: ReadImage) -> NDArray[np.uint8]:
        """Return the pixels of a large image, reduced if it was read by windows."""
        if read.raster is None:
            return self.read(source, read.large)
        with self._times.stage("decode"), read.raster as raster:
            return raster.reduced()

    def _read_now(self, source: Image, name: str) -> ReadImage:
        if self.tiling is None:
            pixels = self.read(source, name)
            return ReadImage((pixels.shape[0], pixels.shape[1]), pixels, None)
        with self._times.stage("decode"):
            reader = Reader(None, False, self.limits, self.upright)
            return reader.now(source, name_of(source, name))

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

    def _windows(self, read: ReadImage) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Yield the windows of an image, and their pixels as the runtime takes them."""
        if self.tiling is None:
            yield from self._warped([(Window(0, 0, *read.size[::-1]), read.pixels)])
            return
        total = self.tiling.count(*read.size[::-1])
        image = read.pixels if read.raster is None else read.raster
        windows = tiles(image, self.tiling, self._preprocess.mean)
        parts = windows if read.raster is None else self._timed(windows)
        for done, part in enumerate(self._warped(parts)):
            if self.on_tile is not None:
                self.on_tile(done, total)
            yield part

    def _warped(
        self, windows: Iterable[tuple[Window, NDArray[np.uint8]]]
    ) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        for window, pixels in windows:
            if self.device.type == "cpu":  # a GPU resizes the images itself
                with self._times.stage("preprocess"):
                    pixels = self._preprocess.warp(pixels)
            yield window, pixels

    def _batches(self, size: int) -> Batches:
        return Batches(self._start, self._finish, size, self._runtime.under_way)

    @torch.inference_mode()
    def _start(self, pixels: Sequence[NDArray[np.uint8]]) -> Any:
        """Begin a batch of images [H, W, 3], of the input's size or, on a GPU, of any."""
        if self.model.training:
            self.model.eval()
        limits = DetectionLimits(
            self.score_threshold, self.nms_threshold, self.top_k, self.max_detections
        )
        return self._runtime.start(pixels, limits)

    @torch.inference_mode()
    def _finish(self, ticket: Any) -> list[Found]:
        """Return what was found in each image of a batch, as fractions of the image."""
        boxes, scores, labels, counts = self._runtime.finish(ticket)
        with self._times.stage("detection_output"):
            return [
                {
                    "boxes": boxes[i, :count].float(),
                    "scores": scores[i, :count].float(),
                    "labels": labels[i, :count],
                }
                for i, count in enumerate(counts.tolist())
            ]

    @torch.inference_mode()
    def _found(self, image: Shown) -> Found:
        """Return the detections of an image in its pixels."""
        if isinstance(image.read, DataError):
            raise image.read
        with self._times.stage("detection_output"):
            return put_together(image.found, image.read.size, self.nms_threshold)
