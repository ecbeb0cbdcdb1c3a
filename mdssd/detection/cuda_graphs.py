"""CUDA graphs: the whole way from pixels to detections as one launch per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd import ops
from mdssd.detection.runtime import (
    DetectionLimits,
    Pipeline,
    Pixels,
    Runtime,
    StageTimes,
    from_pixels,
)
from mdssd.priors.maps import InputSize, width_height

_WARM_UP = 3  # calls before a capture, in which cuDNN chooses its algorithms
_SLOTS = 2  # batches under way: one is uploaded while the other is computed


class _Slot(NamedTuple):
    """The memory of one batch, and the graph that runs on it."""

    host_in: Tensor  # pinned, uint8 [B, H, W, 3]
    device_in: Tensor
    device_out: tuple[Tensor, ...]
    host_out: tuple[Tensor, ...]  # pinned
    graph: torch.cuda.CUDAGraph
    done: torch.cuda.Event


class Graphs:
    """Runs a function on the GPU as CUDA graphs, one per batch size and slot.

    The sizes are the powers of two below `batch_size`, `batch_size` itself, and any size above it.
    Each is captured when it is first needed, and a batch uses the smallest size that it fits in.
    The rows that it does not fill hold pixels of an earlier batch, which does no harm, as no image
    depends on another.

    At most two batches may be under way: a batch must be finished before the next but one is
    started. The second is copied to the GPU on a stream of its own while the first is computed.
    The graphs themselves run one after another on one stream, so they can share their
    intermediate memory.

    Args:
        run: uint8 [B, H, W, 3] on the device -> tensors with B rows. It must never wait for the
            device.
        input_size: side of the input, in pixels, or (width, height) if it is no square.
        batch_size: the usual number of images.
        device: the GPU.
    """

    def __init__(
        self,
        run: Callable[[Tensor], tuple[Tensor, ...]],
        input_size: InputSize,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._run = run
        self._size = width_height(input_size)[::-1]  # height and width
        self._batch_size = batch_size
        self._device = device
        self._compute = torch.cuda.Stream(device)
        self._upload = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._started = 0

    def start(self, images: Sequence[NDArray[np.uint8]]) -> tuple[_Slot, int]:
        """Begin a batch of images of any size and return the ticket for `finish`.

        The images are copied before this returns. Those of the input's size are uploaded
        together; the device resizes the others.
        """
        count = len(images)
        slot = self._slot(fitting_size(count, self._batch_size), self._started % _SLOTS)
        slot.done.synchronize()  # the slot's last batch, in case it was never finished
        frames = {}
        for i, image in enumerate(images):
            if image.shape[:2] == self._size:
                slot.host_in[i].numpy()[...] = image
            else:
                frames[i] = from_pixels(image).pin_memory()
        with torch.cuda.stream(self._upload):
            slot.device_in[:count].copy_(slot.host_in[:count], non_blocking=True)
            for i, frame in frames.items():
                slot.device_in[i] = ops.resize(
                    frame.to(self._device, non_blocking=True), self._size
                )
        self._compute.wait_stream(self._upload)
        # Also wait for work queued on the current stream, such as a weight update.
        self._compute.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._compute):
            slot.graph.replay()
            for host, device in zip(slot.host_out, slot.device_out, strict=True):
                host.copy_(device, non_blocking=True)
            slot.done.record(self._compute)
        self._started += 1
        return slot, count

    @staticmethod
    def finish(ticket: tuple[_Slot, int]) -> tuple[Tensor, ...]:
        """Wait for a batch and return the rows of its images, on the CPU."""
        slot, count = ticket
        slot.done.synchronize()
        return tuple(host[:count].clone() for host in slot.host_out)

    def _slot(self, size: int, number: int) -> _Slot:
        if (size, number) not in self._slots:
            before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = True
            try:
                with torch.cuda.device(self._device):
                    self._slots[size, number] = self._capture(size)
            finally:
                torch.backends.cudnn.benchmark = before
        return self._slots[size, number]

    def _capture(self, size: int) -> _Slot:
        shape = (size, *self._size, 3)
        device_in = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        self._compute.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._compute):
            for _ in range(_WARM_UP):
                self._run(device_in)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._compute):
            device_out = self._run(device_in)
        return _Slot(
            torch.zeros(shape, dtype=torch.uint8, pin_memory=True),
            device_in,
            device_out,
            tuple(torch.empty_like(t, device="cpu", pin_memory=True) for t in device_out),
            graph,
            torch.cuda.Event(),
        )


def fitting_size(count: int, batch_size: int) -> int:
    """Return the batch size at which `count` images run; see `Graphs`."""
    if count > batch_size:
        return count
    return min(1 << (count - 1).bit_length(), batch_size)


class GraphRuntime(Runtime):
    """Runs everything from pixels to detections as one CUDA graph per batch size.

    All its time counts as "network", since the stages are one launch. It never waits for the sake
    of the times: the next batch would then be uploaded too late.
    """

    under_way = _SLOTS

    def __init__(self, pipeline: Pipeline, batch_size: int, times: StageTimes) -> None:
        self._pipeline = pipeline
        self._batch_size = batch_size
        self._times = times
        self._graphs: Graphs | None = None
        self._limits: DetectionLimits | None = None

    def start(self, pixels: Sequence[Pixels], limits: DetectionLimits) -> tuple[_Slot, int]:
        with self._times.stage("network"):
            if self._graphs is None or limits != self._limits:  # a graph has the limits in it
                self._graphs, self._limits = self._capture_with(limits), limits
            return self._graphs.start(pixels)

    def finish(self, ticket: tuple[_Slot, int]) -> ops.Detections:
        with self._times.stage("network"):
            return ops.Detections(*Graphs.finish(ticket))

    def _capture_with(self, limits: DetectionLimits) -> Graphs:
        steps = self._pipeline

        def run(pixels: Tensor) -> tuple[Tensor, ...]:
            return steps.detections(*steps.network(steps.normalize(pixels)), limits)

        return Graphs(run, steps.input_size, self._batch_size, steps.device)
