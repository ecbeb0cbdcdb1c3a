"""Peers of `nms` and `batched_nms` with IoU 0.45 and no limit.

Each returns the indices [K] int64 of the boxes that it keeps. Not all peers sort them by score, so
the order is not compared.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.generators import Scored
from benchmarks.peers import need
from benchmarks.peers.runtimes import onnx_call, onnx_constant, openvino_call
from mdssd import ops

IOU = 0.45
Call = Callable[[], Tensor]


def mdssd(x: Scored) -> Call:
    if x.classes is None:
        return lambda: ops.nms(x.boxes, x.scores, IOU)
    return lambda: ops.batched_nms(x.boxes, x.scores, x.classes, IOU)


def torchvision(x: Scored) -> Call:
    vision = need("torchvision")
    if x.classes is None:
        return lambda: vision.ops.nms(x.boxes, x.scores, IOU)
    return lambda: vision.ops.batched_nms(x.boxes, x.scores, x.classes, IOU)


def _by_class(x: Scored) -> tuple[Tensor, Tensor]:
    """Return boxes [C, N / C, 4] and scores [C, N / C] by class.

    Box i has class i % C, so the position [class, k] belongs to the index k * C + class.
    """
    classes = 1 if x.classes is None else int(x.classes.max()) + 1
    boxes = x.boxes.view(-1, classes, 4).transpose(0, 1).contiguous()
    return boxes, x.scores.view(-1, classes).t().contiguous()


def onnxruntime(x: Scored) -> Call:
    """Use NonMaxSuppression. Its classes share boxes, so each class is an image of a batch."""
    node = need("onnx").helper.make_node
    boxes, scores = _by_class(x)
    nodes = [
        onnx_constant("most", torch.tensor([boxes.shape[1]])),
        onnx_constant("iou", torch.tensor([IOU])),
        node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["kept"]),
    ]
    run = onnx_call(nodes, ["kept"], boxes=boxes, scores=scores[:, None])

    def call() -> Tensor:
        kept = torch.from_numpy(run()[0])  # [K, 3]: image, class, box
        return kept[:, 2] * len(boxes) + kept[:, 0]

    return call


def openvino_nms(x: Scored) -> Call:
    """Use NonMaxSuppression. Its classes share boxes, so each class is an image of a batch."""
    module = need("openvino")
    opset = module.opset9
    boxes, scores = _by_class(x)
    arrays = [boxes.numpy(), scores[:, None].contiguous().numpy()]
    inputs = [opset.parameter(list(a.shape), a.dtype) for a in arrays]
    node = opset.non_max_suppression(
        *inputs,
        opset.constant(np.int64(boxes.shape[1])),
        opset.constant(np.float32(IOU)),
        opset.constant(np.float32(0)),
        box_encoding="corner",
        sort_result_descending=False,
        output_type="i64",
    )
    model = module.Model([node.output(0), node.output(2)], inputs)
    run = openvino_call(model, *arrays)

    def call() -> Tensor:
        index, count = run()  # [K, 3]: image, class, box
        kept = torch.from_numpy(index[: int(count[0])])
        return kept[:, 2] * len(boxes) + kept[:, 0]

    return call


def openvino_multiclass(x: Scored) -> Call:
    """Use MulticlassNms, in which each class has its own boxes."""
    module = need("openvino")
    opset = module.opset9
    boxes, scores = _by_class(x)
    arrays = [boxes.numpy(), scores.numpy(), np.array([boxes.shape[1]], np.int64)]
    inputs = [opset.parameter(list(a.shape), a.dtype) for a in arrays]
    node = opset.multiclass_nms(
        *(inputs[0], inputs[1], inputs[2]),
        sort_result_type="none",
        iou_threshold=IOU,
        score_threshold=0.0,
        background_class=-1,
        output_type="i64",
    )
    model = module.Model([node.output(1), node.output(2)], inputs)
    run = openvino_call(model, *arrays)

    def call() -> Tensor:
        index, count = run()
        return torch.from_numpy(index[: int(count[0]), 0])  # k * C + class

    return call


def opencv(x: Scored) -> Call:
    """Use NMSBoxes or NMSBoxesBatched, which take boxes as a corner and a size."""
    cv2.setNumThreads(torch.get_num_threads())
    boxes = torch.cat([x.boxes[:, :2], x.boxes[:, 2:] - x.boxes[:, :2]], 1).double().numpy()
    scores = x.scores.numpy()
    if x.classes is None:
        return lambda: torch.as_tensor(cv2.dnn.NMSBoxes(boxes, scores, 0.0, IOU))
    classes = x.classes.int().numpy()
    return lambda: torch.as_tensor(cv2.dnn.NMSBoxesBatched(boxes, scores, classes, 0.0, IOU))


def lsnms(x: Scored) -> Call:
    module = need("lsnms")
    boxes, scores = x.boxes.double().numpy(), x.scores.double().numpy()
    classes = None if x.classes is None else x.classes.numpy()

    def call() -> Tensor:
        kept = module.nms(boxes, scores, IOU, class_ids=classes)
        return torch.from_numpy(np.asarray(kept, np.int64))

    return call


PEERS = {
    "torchvision": torchvision,
    "onnxruntime": onnxruntime,
    "openvino NonMaxSuppression": openvino_nms,
    "openvino MulticlassNms": openvino_multiclass,
    "opencv": opencv,
    "lsnms": lsnms,
}
ON_GPU = ("torchvision",)
