"""What stands around the kernel of soft_nms on a GPU: sorting and gathering, in PyTorch.

Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mdssd.ops._merging import starts_of_groups
from mdssd.ops._results import new_soft_keep
from mdssd.ops._settings import SoftNmsSettings
from mdssd.ops._tensors import accumulation_dtype

# boxes, scores, starts (None: all have the same label) -> the lowered score of each chosen box, and
# -inf for the others. The boxes are sorted by label, and starts[i] is the position of the first box
# of box i's label.
Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def soften(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    settings: SoftNmsSettings,
    kernel: Kernel,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `mdssd.ops.soft_nms_padded`."""
    result = new_soft_keep(boxes, settings)
    if boxes.shape[0] == 0:
        return result
    stored, dtype = boxes.dtype, accumulation_dtype(boxes.dtype)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if labels is None:
        softened = kernel(boxes, scores, None)
    else:
        order = labels.argsort(stable=True)
        by_label = kernel(boxes[order], scores[order], starts_of_groups(order, labels))
        softened = torch.empty_like(by_label).index_copy_(0, order, by_label)
    rows = result[0].shape[0]
    keep = softened.argsort(descending=True, stable=True)[:rows]
    found = (softened != -torch.inf).sum().clamp(max=rows)
    used = torch.arange(rows, device=boxes.device) < found
    kept_scores = softened[keep].to(stored)
    return torch.where(used, keep, result[0]), torch.where(used, kept_scores, result[1]), found
