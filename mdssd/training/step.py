"""One iteration of training: forward, loss, backward, update; in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdssd import ops
from mdssd.models import SingleShotDetector
from mdssd.system import distributed
from mdssd.training.settings import Recipe

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Losses(NamedTuple):
    """Of a whole batch: of all its parts, in all processes, and the same in each of these."""

    loc: float
    conf: float
    images: int

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loc + self.conf)


class TrainingStep:
    """What a batch does to a model: `backward` leaves its gradients, `update` uses them.

    A batch may come in parts, over processes (each calls with its own images, as many times as the
    others, with no image too) and within a process (`settings.accumulate`). With the normaliser
    "global" each part's loss is weighted with its share of the batch's positive priors, which is
    known before the first forward pass because matching needs the boxes only. The gradient is then
    the whole batch's, in whatever parts it came. With "local" it is the mean over the processes of
    what each has for its own images, as with Caffe on several GPUs.

    Batch normalisation sees a part at a time, with `settings.sync_batch_norm` that of all
    processes; its running statistics, unless frozen, are the mean over the processes. After
    `update` every process has the same model, to the bit.

    model: in training mode, on its device. average: follows the model with `settings.ema`.
    """

    def __init__(
        self,
        model: SingleShotDetector,
        optimizer: torch.optim.Optimizer,
        settings: Recipe,
        average: SingleShotDetector | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._average = average
        self._device = model.priors.device
        # Of the losses.
        self._dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self._parallel: DistributedDataParallel | None = None
        if distributed.running():
            self._parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
            self._parallel.broadcast_buffers = False  # update() sees to them
        self._network: Callable[..., Any] = self._parallel or model
        if settings.compile:
            self._network = torch.compile(self._network)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.amp == "fp16")
        self._norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def backward(self, images: Tensor, boxes_xyxy: list[Tensor], labels: list[Tensor]) -> Losses:
        """The gradients of this process's part of a batch, summed with the others'; the losses."""
        self._optimizer.zero_grad(set_to_none=True)
        device = self._device
        targets = ops.encode_targets(
            [boxes.to(device, non_blocking=True) for boxes in boxes_xyxy],
            [each.to(device, non_blocking=True) for each in labels],
            self._model.priors,
        )
        parts = max(1, min(self._settings.accumulate, len(images)))
        split = [
            tensor.tensor_split(parts)
            for tensor in (images.to(device, non_blocking=True), targets.loc, targets.labels)
        ]
        weights = self._weights(split[2])
        sums: Tensor | float = 0.0
        for k, part in enumerate(zip(*split, strict=True)):
            last = k == parts - 1
            with nullcontext() if last else self._no_sync():
                losses = self._losses(*part) * weights[k]
                sums = sums + losses.detach()
                if last:
                    # Asked for now, the losses are there before the backward pass is through.
                    read = _read_later(self._of_all(sums, len(images)))
                self._scaler.scale(losses.sum()).backward()
        loc, conf, count = read()
        return Losses(loc, conf, round(count))

    def update(self, lr: float, iteration: int) -> None:
        """Change the weights by the gradients; `iteration`, from 0, is for the average's decay."""
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        if settings.clip_gradient is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.clip_gradient)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._parallel is not None:
            _share_means([t for m in self._norms if m.training for t in _statistics(m)])
        if self._average is not None:
            _follow(self._average, self._model, settings.ema, iteration)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs besides model and optimiser: the scale of the gradients."""
        return {f"scaler.{k}": torch.tensor(v) for k, v in self._scaler.state_dict().items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; other tensors among it are left alone."""
        state = {
            name.removeprefix("scaler."): tensor.item()
            for name, tensor in tensors.items()
            if name.startswith("scaler.")
        }
        if state:
            self._scaler.load_state_dict(state)

    def _no_sync(self) -> AbstractContextManager[None]:
        return nullcontext() if self._parallel is None else self._parallel.no_sync()

    def _losses(self, images: Tensor, loc_targets: Tensor, labels: Tensor) -> Tensor:
        """Both losses [2] of a part, over its own positives."""
        dtype = _AMP.get(self._settings.amp or "")
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            loc, logits = self._network(images)
        if dtype is not None:
            loc, logits = loc.float(), logits.float()
        return torch.stack(ops.multibox_loss(loc, logits, loc_targets, labels))

    def _weights(self, labels: tuple[Tensor, ...]) -> Tensor:
        """What each part's losses count for [parts], before the mean over the processes.

        multibox_loss divides by max(1, positives of the part): this puts the whole's in its place.
        """
        counts = torch.stack([(part > 0).sum() for part in labels])
        total = counts.sum()
        processes = 1
        if self._settings.normalizer == "global":
            total = distributed.add_up(total)
            processes = distributed.world_size()
        return counts.clamp(min=1).to(self._dtype) * processes / total.clamp(min=1)

    def _of_all(self, losses: Tensor, images: int) -> Tensor:
        values = torch.cat([losses / distributed.world_size(), losses.new_full((1,), images)])
        return distributed.add_up(values)


def _read_later(values: Tensor) -> Callable[[], list[float]]:
    """Start copying to the host; calling the result waits for what was asked for until now."""
    host = values.to("cpu", non_blocking=True)
    if values.device.type != "cuda":
        return values.tolist
    event = torch.cuda.Event()
    event.record()

    def read() -> list[float]:
        event.synchronize()
        return list(host.tolist())

    return read


def _statistics(norm: nn.modules.batchnorm._BatchNorm) -> list[Tensor]:
    return [tensor for tensor in (norm.running_mean, norm.running_var) if tensor is not None]


def _share_means(tensors: list[Tensor]) -> None:
    """Put the mean over the processes in place of each tensor."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.add_up(flat).div_(distributed.world_size())
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def _follow(
    average: SingleShotDetector, model: SingleShotDetector, decay: float | None, step: int
) -> None:
    """average <- decay * average + (1 - decay) * model, running statistics included."""
    assert decay is not None
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
