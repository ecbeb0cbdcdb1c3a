"""The interface of a runtime, and the parts that the runtimes share.

A runtime takes a batch of images and returns its detections. It decides how the network runs: as
PyTorch does it, compiled, in another library, as a CUDA graph. A new runtime is a subclass of
`Runtime` and one line in `make_runtime` (runtimes.py).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd import ops
from mdssd.data.preprocess import to_tensor
from mdssd.ops._threads import on_one_thread
from mdssd.priors.maps import InputSize, width_height

# Images [B, 3, H, W] minus the mean, or pixels -> loc [B, N, 4], logits [B, N, C].
Network: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
Pixels: TypeAlias = NDArray[np.uint8]

STAGES = ("decode", "preprocess", "network", "detection_output")


@dataclass(frozen=True)
class DetectionLimits:
    """The keywords that a detector passes to `ops.detection_output`; they may change any time."""

    score_threshold: float
    nms_threshold: float
    top_k: int
    max_detections: int


class StageTimes:
    """The seconds that a detector has spent in each stage.

    A GPU computes while Python continues, so its time counts towards the stage that fetches the
    results. With `separate` the stages that compute on the GPU wait for it, and its time counts
    towards each of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.separate = False
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str, *, computes: bool = False) -> Iterator[None]:
        """Add the time of the block to a stage.

        Args:
            name: one of `STAGES`.
            computes: whether the block computes on the device, so that `separate` concerns it. A
                block that reads images leaves the GPU to the batch that is under way.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.separate and computes and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] += time.perf_counter() - start


@dataclass
class Pipeline:
    """The steps from pixels to detections on one device. A runtime puts them together.

    Attributes:
        network: the model as the runtime calls it.
        priors: [N, 4] float32, on the device.
        mean: the mean of each channel, 0 to 255.
        input_size: side of the network's input, in pixels, or (width, height) if it is no square.
        dtype: the type of the network's input.
        takes_pixels: whether the network takes uint8 [B, H, W, 3] and subtracts the mean itself.
    """

    network: Network
    priors: Tensor
    mean: tuple[float, float, float]
    input_size: InputSize
    dtype: torch.dtype
    takes_pixels: bool = False

    def __post_init__(self) -> None:
        # Made once: a CUDA graph cannot copy it to the device while it is captured.
        self._shift = torch.tensor(self.mean, dtype=torch.float32, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.priors.device

    def network_input(self, pixels: Sequence[Pixels]) -> Tensor:
        """Return a batch [B, 3, H, W], channels last in memory, of images [H, W, 3].

        On a GPU the images may have any size: the GPU resizes them. With `takes_pixels` the batch
        is uint8 [B, H, W, 3].
        """
        if self.takes_pixels:
            return torch.from_numpy(np.stack(pixels))
        if self.device.type == "cpu":
            return to_tensor(np.stack(pixels), self.mean).to(self.dtype)
        return self.normalize(self.upload(pixels))

    def upload(self, pixels: Sequence[Pixels]) -> Tensor:
        """Copy images to the device and resize them there, to uint8 [B, H, W, 3]."""
        size = width_height(self.input_size)[::-1]
        images = (from_pixels(image).to(self.device) for image in pixels)
        return torch.stack([ops.resize(image, size) for image in images])

    def normalize(self, pixels: Tensor) -> Tensor:
        """Subtract the mean from uint8 [B, H, W, 3] and return [B, 3, H, W]."""
        return (pixels.permute(0, 3, 1, 2) - self._shift[:, None, None]).to(self.dtype)

    def detections(self, loc: Tensor, logits: Tensor, limits: DetectionLimits) -> ops.Detections:
        """Turn the network's output into detections, on the device."""
        with on_one_thread() if self.takes_pixels else nullcontext():  # OpenVINO wants the others
            return ops.detection_output(loc, logits, self.priors, **asdict(limits))


def from_pixels(image: Pixels) -> Tensor:
    """Return an image as a tensor. One that is mirrored, a view, or read-only is copied."""
    return torch.from_numpy(np.require(image, requirements=["C", "W"]))


class Runtime(ABC):
    """Runs batches of images. A batch is started and, later, finished.

    Attributes:
        under_way: how many batches may be started before the first of them is finished. A
            runtime with 2 copies a batch to the GPU while the GPU computes the one before.
    """

    under_way = 1

    @abstractmethod
    def start(self, pixels: Sequence[Pixels], limits: DetectionLimits) -> Any:
        """Begin a batch of one image or more, and return the ticket that `finish` takes.

        Args:
            pixels: uint8 [H, W, 3] each, of the input's size; on a GPU of any size.
            limits: the settings of this batch.
        """

    @abstractmethod
    def finish(self, ticket: Any) -> ops.Detections:
        """Wait for the batch of a ticket, and return its detections on the CPU."""


class NetworkRuntime(Runtime):
    """Calls a network and the operators one after another: "eager", "compile" and "openvino"."""

    def __init__(self, pipeline: Pipeline, times: StageTimes) -> None:
        self._pipeline = pipeline
        self._times = times

    def start(self, pixels: Sequence[Pixels], limits: DetectionLimits) -> ops.Detections:
        with self._times.stage("preprocess", computes=True):
            batch = self._pipeline.network_input(pixels)
        with self._times.stage("network", computes=True):
            loc, logits = self._pipeline.network(batch)
        with self._times.stage("detection_output", computes=True):
            return self._pipeline.detections(loc, logits, limits)

    def finish(self, ticket: ops.Detections) -> ops.Detections:
        with self._times.stage("detection_output"):
            return ops.Detections(*(tensor.cpu() for tensor in ticket))
