"""One iteration of training: forward, loss, backward, update; in one process or in several."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdssd import ops
from mdssd.models import SingleShotDetector
from mdssd.priors.maps import width_height
from mdssd.system import distributed
from mdssd.training.settings import Recipe

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Losses(NamedTuple):
    """The losses of a whole batch: all its parts in all processes, and equal in each of these."""

    loc: float
    conf: float
    images: int

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loc + self.conf)


class TrainingStep:
    """Trains a model on one batch: `backward` computes the gradients, `update` applies them.

    A batch may come in parts: over processes (each calls with its own images, or none, equally
    often) and within a process (`settings.accumulate`). With the normalizer "global", each part's
    loss is weighted by its share of the batch's positive priors; matching needs only the boxes, so
    that share is known before the first forward pass. The gradient is then that of the whole batch,
    however it was divided. With "local", it is the mean over the processes of the gradients that
    each computes for its own images, as Caffe does on several GPUs.

    Batch normalisation sees one part at a time, with `settings.sync_batch_norm` that of all
    processes. Its running statistics, unless frozen, are the mean over the processes. After
    `update`, every process has the same model, bit for bit.

    Args:
        model: the model, on its device and in training mode.
        optimizer: SGD over `parameter_groups(model, settings)`.
        settings: the settings of the run.
        average: a copy of the model that follows its weights, if `settings.ema` is set.
    """

    def __init__(
        self,
        model: SingleShotDetector,
        optimizer: torch.optim.Optimizer,
        settings: Recipe,
        average: SingleShotDetector | None = None,
    ) -> None:
        self.model = model
        self.average = average
        self.device = model.priors.device
        self._optimizer = optimizer
        self._settings = settings
        # The losses are in float32, whatever smaller type the weights have.
        self._dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self._pixels = torch.tensor(width_height(model.input_size) * 2).to(model.priors)
        self._parallel: DistributedDataParallel | None = None
        if distributed.running():
            self._parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
            self._parallel.broadcast_buffers = False  # update() averages them
        self._network: Callable[..., Any] = self._parallel or model
        if settings.compile:
            self._network = torch.compile(self._network)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "fp16")
        self._norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @classmethod
    def create(
        cls,
        model: SingleShotDetector,
        settings: Recipe,
        device: torch.device,
        tensors: Mapping[str, Tensor],
    ) -> TrainingStep:
        """Move a model to its device, and make its optimiser and its average for a run.

        tensors: A state to resume from, see `load_state_dict`; may be empty.
        """
        if settings.sync_batch_norm and "batch-norm" not in model.frozen:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = copy.deepcopy(model) if settings.ema is not None else None
        optimizer = torch.optim.SGD(
            parameter_groups(model, settings), settings.lr, momentum=settings.momentum, foreach=True
        )
        # cuDNN chooses algorithms by the shapes alone. With torch.backends.cudnn.benchmark it would
        # choose by timing. That suits inputs of one size, but a resumed run could then take other
        # algorithms, and so other bits, than the run that it continues.
        step = cls(model, optimizer, settings, average)
        step.load_state_dict(tensors)
        return step

    @property
    def saved_model(self) -> SingleShotDetector:
        """The model that checkpoints contain and evaluations use: the average, if there is one."""
        return self.model if self.average is None else self.average

    def backward(self, images: Tensor, boxes_xyxy: list[Tensor], labels: list[Tensor]) -> Losses:
        """Compute the gradients of a batch, summed over the processes, and return its losses.

        The label -1 means a box to be ignored: with `settings.ignore`, what the network says of the
        priors on it that match no object does not count.
        """
        self._optimizer.zero_grad(set_to_none=True)
        device, ignored = self.device, None
        if self._settings.ignore:
            objects = [each > 0 for each in labels]
            others = [~each for each in objects]
            ignored, _ = _upload(_chosen(boxes_xyxy, others), _chosen(labels, others), device)
            boxes_xyxy, labels = _chosen(boxes_xyxy, objects), _chosen(labels, objects)
        boxes_xyxy, labels = _upload(boxes_xyxy, labels, device)
        targets = self._targets(boxes_xyxy, labels, ignored)
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
                    # Copy them now, and they arrive while the backward pass still runs.
                    read = _read_later(self._of_all(sums, len(images)))
                self._scaler.scale(losses.sum()).backward()
        loc, conf, count = read()
        return Losses(loc, conf, round(count))

    def _targets(
        self, boxes_xyxy: list[Tensor], labels: list[Tensor], ignored_xyxy: list[Tensor] | None
    ) -> ops.Targets:
        """Return what the network is to learn. The boxes are fractions of the image."""
        settings, priors = self._settings, self.model.priors
        rules: dict[str, Any] = {"top_k": settings.match_top_k}
        if settings.match_metric == "nwd":
            # A distance needs the same unit along both axes. Offsets do not depend on the unit.
            rules |= {"metric": "nwd", "nwd_constant": settings.nwd_constant}
            priors = priors * self._pixels
            boxes_xyxy = [boxes * self._pixels for boxes in boxes_xyxy]
            if ignored_xyxy is not None:
                ignored_xyxy = [boxes * self._pixels for boxes in ignored_xyxy]
        return ops.encode_targets(
            boxes_xyxy, labels, priors, settings.match_threshold, ignored_xyxy=ignored_xyxy, **rules
        )

    def update(self, lr: float, iteration: int) -> None:
        """Apply the gradients. `iteration` counts from 0 and sets the decay of the average."""
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        if settings.clip_gradient is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_gradient)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._parallel is not None:
            _share_means([t for m in self._norms if m.training for t in _statistics(m)])
        if self.average is not None:
            _follow(self.average, self.model, settings.ema, iteration)

    def finish(self) -> None:
        """Leave the model as checkpoints contain it, with averaged weights, in evaluation mode."""
        if self.average is not None:
            self.model.load_state_dict(self.average.state_dict())
        self.model.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs besides the weights of `saved_model`.

        These are the momentum, the gradient scale of fp16, and with an average also the weights of
        the model itself.
        """
        tensors = {}
        for name, parameter in self.model.named_parameters():
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        if self.average is not None:
            tensors |= {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"scaler.{k}": torch.tensor(v) for k, v in self._scaler.state_dict().items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. What is missing is left as it is."""
        if weights := _under("model.", tensors):
            self.model.load_state_dict(weights)
        momentum = _under("momentum.", tensors)
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter).copy_(momentum[name])
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        if scaler := _under("scaler.", tensors):
            self._scaler.load_state_dict({name: t.item() for name, t in scaler.items()})

    def _no_sync(self) -> AbstractContextManager[None]:
        return nullcontext() if self._parallel is None else self._parallel.no_sync()

    def _losses(self, images: Tensor, loc_targets: Tensor, labels: Tensor) -> Tensor:
        """Return both losses [2] of a part, divided by its own positive priors."""
        dtype = _AMP.get(self._settings.amp or "")
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loc, logits = self._network(images)
        if dtype is not None:
            loc, logits = loc.float(), logits.float()
        return torch.stack(ops.multibox_loss(loc, logits, loc_targets, labels))

    def _weights(self, labels: tuple[Tensor, ...]) -> Tensor:
        """Return the weight of each part's losses [parts], before the mean over the processes.

        multibox_loss divides by the positive priors of the part, or by 1 if there is none. The
        weights replace that divisor by the positive priors of the whole batch.
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


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the groups for SGD, each with its `lr_factor`: weights, batch norm weights, biases.

    Caffe's SSD decays all weights, the scales of L2Norm included, but not the biases, which learn
    twice as fast. It has no batch normalisation; the weights of that do not decay here.
    """
    weights: list[Tensor] = []
    norms: list[Tensor] = []
    biases: list[Tensor] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                norms.append(parameter)
            else:
                weights.append(parameter)
    groups = (
        {"params": weights, "weight_decay": recipe.weight_decay, "lr_factor": 1.0},
        {"params": norms, "weight_decay": 0.0, "lr_factor": 1.0},
        {
            "params": biases,
            "weight_decay": recipe.bias_weight_decay,
            "lr_factor": recipe.bias_lr_factor,
        },
    )
    return [group for group in groups if group["params"]]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, under their names without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _chosen(tensors: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    return [each[mask] for each, mask in zip(tensors, masks, strict=True)]


def _upload(
    boxes_xyxy: list[Tensor], labels: list[Tensor], device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Copy the boxes and labels of a batch to the device: for a GPU, by one copy for all."""
    if device.type != "cuda" or not boxes_xyxy:
        return [each.to(device) for each in boxes_xyxy], [each.to(device) for each in labels]
    packed = _packed(boxes_xyxy, labels)
    if packed.device.type == "cpu":
        packed = packed.pin_memory().to(device, non_blocking=True)
    return _unpacked(packed, [len(each) for each in labels], boxes_xyxy[0].dtype)


def _packed(boxes_xyxy: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Return the bytes of all labels, then those of all boxes."""
    parts = torch.cat(labels), torch.cat(boxes_xyxy).flatten()
    return torch.cat([part.view(torch.uint8) for part in parts])


def _unpacked(
    packed: Tensor, counts: list[int], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the boxes and labels of each image, as views of what `_packed` returned."""
    end = 8 * sum(counts)
    boxes_xyxy = packed[end:].view(dtype).view(-1, 4)
    return list(boxes_xyxy.split(counts)), list(packed[:end].view(torch.int64).split(counts))


def _read_later(values: Tensor) -> Callable[[], list[float]]:
    """Start copying values to the host, and return a function that waits for them.

    It waits only for work queued before this call, not for the backward pass that follows.
    """
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
    """Replace each tensor by its mean over the processes."""
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
    """Set average = decay * average + (1 - decay) * model, also for running statistics."""
    assert decay is not None
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
