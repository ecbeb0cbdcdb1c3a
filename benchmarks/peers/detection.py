"""Peers of `detection_output` for one image: score above 0.01, NMS at 0.45 per class, best 200.

Each returns Found, sorted by falling score. The peers in `NO_TOP_K` cannot limit a class to 400
candidates; they are compared with the reference without this limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.generators import NetworkOutput
from benchmarks.peers import need
from benchmarks.peers.runtimes import onnx_call, onnx_constant, openvino_call
from mdssd import ops

SCORE, IOU, TOP_K, BEST = 0.01, 0.45, 400, 200


class Found(NamedTuple):
    boxes: Tensor  # [K, 4] xyxy
    scores: Tensor  # [K]
    labels: Tensor  # [K] int64, from 1


Call = Callable[[], Found]


def decode(loc: Tensor, priors: Tensor) -> Tensor:
    """Decode to corners [N, 4] as the PyTorch ports of SSD do."""
    middle = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(loc[:, 2:] * 0.2)
    return torch.cat([middle - size / 2, middle + size / 2], 1)


def best(boxes: Tensor, scores: Tensor, labels: Tensor) -> Found:
    """Return the BEST highest scores of the boxes that NMS kept."""
    values, order = scores.topk(min(BEST, len(scores)))
    return Found(boxes[order], values, labels[order])


def mdssd(x: NetworkOutput) -> Call:
    def call() -> Found:
        found = ops.detection_output(*x)
        return Found(found.boxes[0], found.scores[0], found.labels[0])

    return call


def torchvision_way(x: NetworkOutput) -> Call:
    """Use the post-processing of torchvision's SSD, with this project's NMS if it is missing."""
    try:
        from torchvision.ops import batched_nms
    except (ImportError, RuntimeError):
        batched_nms = ops.batched_nms

    def call() -> Found:
        boxes = decode(x.loc[0], x.priors)
        scores = x.logits[0].softmax(-1)
        parts = []
        for label in range(1, scores.shape[1]):
            score = scores[:, label]
            keep = score > SCORE
            score, box = score[keep], boxes[keep]
            score, order = score.topk(min(TOP_K, len(score)))
            parts.append((box[order], score, torch.full_like(order, label)))
        box, score, label = (torch.cat(part) for part in zip(*parts, strict=True))
        keep = batched_nms(box, score, label, IOU)[:BEST]
        return Found(box[keep], score[keep], label[keep])

    return call


def torch_vectorised(x: NetworkOutput) -> Call:
    """Process all classes at once: the best 400 of each, the IoU of all pairs, one greedy loop."""

    def call() -> Found:
        boxes = decode(x.loc[0], x.priors)
        scores = x.logits[0].softmax(-1)[:, 1:].t()  # [C - 1, N]
        score, order = scores.topk(min(TOP_K, len(boxes)))  # [C - 1, 400]
        size = max(1, int((score > SCORE).sum(1).max()))
        score, order = score[:, :size], order[:, :size]
        box = boxes[order]  # [C - 1, 400, 4]
        low = torch.maximum(box[:, :, None, :2], box[:, None, :, :2])
        high = torch.minimum(box[:, :, None, 2:], box[:, None, :, 2:])
        overlap = (high - low).clamp_(min=0).prod(-1)
        area = (box[..., 2:] - box[..., :2]).prod(-1)
        meets = overlap / (area[:, :, None] + area[:, None] - overlap) > IOU
        meets = meets.triu_(1)
        alive = score > SCORE
        for i in range(size):
            alive &= ~(meets[:, i] & alive[:, i, None])
        label = torch.arange(1, len(scores) + 1, device=boxes.device)[:, None].expand_as(alive)
        return best(box[alive], score[alive], label[alive])

    return call


def ssd_pytorch(x: NetworkOutput) -> Call:
    """Loop over the classes and over the boxes that NMS keeps, as ssd.pytorch does."""

    def nms(boxes: Tensor, scores: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(1)
        area = (x2 - x1) * (y2 - y1)
        order = scores.sort()[1][-TOP_K:]
        kept = []
        while order.numel():
            i = order[-1]
            kept.append(i)
            order = order[:-1]
            if not order.numel():
                break
            width = (x2[order].clamp(max=x2[i]) - x1[order].clamp(min=x1[i])).clamp(min=0)
            height = (y2[order].clamp(max=y2[i]) - y1[order].clamp(min=y1[i])).clamp(min=0)
            overlap = width * height
            order = order[overlap / (area[order] + area[i] - overlap) <= IOU]
        return torch.stack(kept)

    def call() -> Found:
        boxes = decode(x.loc[0], x.priors)
        scores = x.logits[0].softmax(-1).t().contiguous()
        parts = []
        for label in range(1, len(scores)):
            keep = scores[label] > SCORE
            score, box = scores[label][keep], boxes[keep]
            if len(score):
                rows = nms(box, score)
                parts.append((box[rows], score[rows], torch.full_like(rows, label)))
        return best(*(torch.cat(part) for part in zip(*parts, strict=True)))

    return call


def torch_lsnms(x: NetworkOutput) -> Call:
    """Use PyTorch for softmax and the best 400 of each class, and lsnms for NMS."""
    lsnms = need("lsnms")

    def call() -> Found:
        boxes = decode(x.loc[0], x.priors)
        scores = x.logits[0].softmax(-1)[:, 1:].t()
        score, order = scores.topk(min(TOP_K, len(boxes)))
        label, rank = (score > SCORE).nonzero(as_tuple=True)
        box, score = boxes[order[label, rank]], score[label, rank]
        kept = lsnms.nms(box.double().numpy(), score.double().numpy(), IOU, class_ids=label.numpy())
        rows = torch.from_numpy(np.asarray(kept, np.int64))
        return best(box[rows], score[rows], label[rows] + 1)

    return call


def onnxruntime(x: NetworkOutput) -> Call:
    """Use one graph of Softmax, decoding, NonMaxSuppression (200 per class) and TopK."""
    node = need("onnx").helper.make_node
    sizes = x.priors[:, 2:]
    constants = {
        "0": torch.tensor([0]),
        "1": torch.tensor([1]),
        "2": torch.tensor([2]),
        "4": torch.tensor([4]),
        "classes": torch.tensor([x.logits.shape[2]]),
        "second": torch.tensor(1),
        "third": torch.tensor(2),
        "middle_scale": 0.1 * sizes,
        "middle": x.priors[:, :2],
        "size_scale": torch.tensor(0.2),
        "half_size": sizes / 2,
        "best": torch.tensor([BEST]),
        "iou": torch.tensor([IOU]),
        "score": torch.tensor([SCORE]),
    }
    nodes = [
        *(onnx_constant(name, value) for name, value in constants.items()),
        node("Softmax", ["logits"], ["probability"], axis=-1),
        node("Slice", ["probability", "1", "classes", "2"], ["foreground"]),  # on axis 2
        node("Transpose", ["foreground"], ["scores"], perm=[0, 2, 1]),
        node("Slice", ["loc", "0", "2", "2"], ["shift"]),
        node("Slice", ["loc", "2", "4", "2"], ["stretch"]),
        node("Mul", ["shift", "middle_scale"], ["moved"]),
        node("Add", ["moved", "middle"], ["centre"]),
        node("Mul", ["stretch", "size_scale"], ["exponent"]),
        node("Exp", ["exponent"], ["growth"]),
        node("Mul", ["growth", "half_size"], ["half"]),
        node("Sub", ["centre", "half"], ["low"]),
        node("Add", ["centre", "half"], ["high"]),
        node("Concat", ["low", "high"], ["boxes"], axis=2),
        node("NonMaxSuppression", ["boxes", "scores", "best", "iou", "score"], ["kept"]),
        node("GatherND", ["scores", "kept"], ["kept_scores"]),
        node("Shape", ["kept_scores"], ["count"]),
        node("Min", ["count", "best"], ["k"]),
        node("TopK", ["kept_scores", "k"], ["best_scores", "rows"], axis=0),
        node("Gather", ["kept", "rows"], ["best_kept"]),  # [K, 3]: image, class, prior
        node("Gather", ["best_kept", "second"], ["best_labels"], axis=1),
        node("Gather", ["best_kept", "third"], ["best_priors"], axis=1),
        node("Gather", ["boxes", "best_priors"], ["best_boxes"], axis=1),
    ]
    run = onnx_call(nodes, ["best_boxes", "best_scores", "best_labels"], loc=x.loc, logits=x.logits)

    def call() -> Found:
        boxes, scores, labels = run()
        return Found(
            torch.from_numpy(boxes[0]), torch.from_numpy(scores), torch.from_numpy(labels) + 1
        )

    return call


def openvino_detection_output(x: NetworkOutput) -> Call:
    """Use OpenVINO's softmax and DetectionOutput, the layer of SSD's original code."""
    openvino = need("openvino")
    opset = openvino.opset8
    half = x.priors[:, 2:] / 2
    corners = torch.cat([x.priors[:, :2] - half, x.priors[:, :2] + half], 1).reshape(1, 1, -1)
    variances = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(len(x.priors)).reshape(1, 1, -1)
    loc = opset.parameter([1, x.loc[0].numel()], np.float32)
    logits = opset.parameter(list(x.logits.shape), np.float32)
    scores = opset.reshape(opset.softmax(logits, 2), np.array([1, x.logits[0].numel()]), False)
    layer = opset.detection_output(
        loc,
        scores,
        opset.constant(torch.cat([corners, variances], 1).numpy()),
        {
            "background_label_id": 0,
            "top_k": TOP_K,
            "keep_top_k": [BEST],
            "code_type": "caffe.PriorBoxParameter.CENTER_SIZE",
            "share_location": True,
            "nms_threshold": IOU,
            "confidence_threshold": SCORE,
            "normalized": True,
        },
    )
    model = openvino.Model([layer], [loc, logits])
    run = openvino_call(model, x.loc.reshape(1, -1).numpy(), x.logits.numpy())

    def call() -> Found:
        rows = torch.from_numpy(run()[0][0, 0])  # image, label, score, box; image -1 marks the end
        ends = (rows[:, 0] < 0).nonzero()
        rows = rows[: int(ends[0])] if len(ends) else rows
        return best(rows[:, 3:], rows[:, 2], rows[:, 1].long())

    return call


def openvino_multiclass_nms(x: NetworkOutput) -> Call:
    """Use OpenVINO's softmax, decoding and MulticlassNms in one graph."""
    openvino = need("openvino")
    opset = openvino.opset9
    loc = opset.parameter(list(x.loc.shape), np.float32)
    logits = opset.parameter(list(x.logits.shape), np.float32)
    halves = opset.split(loc, 2, 2)
    sizes = x.priors[None, :, 2:].numpy()
    middle = opset.add(
        opset.multiply(halves.output(0), opset.constant(0.1 * sizes)),
        opset.constant(x.priors[None, :, :2].numpy()),
    )
    growth = opset.exp(opset.multiply(halves.output(1), opset.constant(np.float32(0.2))))
    half = opset.multiply(growth, opset.constant(sizes / 2))
    boxes = opset.concat([opset.subtract(middle, half), opset.add(middle, half)], 2)
    scores = opset.transpose(opset.softmax(logits, 2), np.array([0, 2, 1]))
    nms = opset.multiclass_nms(
        boxes,
        scores,
        sort_result_type="score",
        iou_threshold=IOU,
        score_threshold=SCORE,
        nms_top_k=TOP_K,
        keep_top_k=BEST,
        background_class=0,
    )
    model = openvino.Model([nms.output(0), nms.output(2)], [loc, logits])
    run = openvino_call(model, x.loc.numpy(), x.logits.numpy())

    def call() -> Found:
        rows, count = run()
        found = torch.from_numpy(rows[: int(count[0])])  # label, score, box
        return Found(found[:, 2:], found[:, 1], found[:, 0].long())

    return call


PEERS: dict[str, Any] = {
    "onnxruntime": onnxruntime,
    "openvino DetectionOutput": openvino_detection_output,
    "openvino MulticlassNms": openvino_multiclass_nms,
    "torch + lsnms": torch_lsnms,
    "torchvision's way": torchvision_way,
    "torch vectorised": torch_vectorised,
    "ssd.pytorch's way": ssd_pytorch,
}
ON_GPU = ("torchvision's way", "torch vectorised", "ssd.pytorch's way")
NO_TOP_K = ("onnxruntime",)


def differences(got: Found, want: Found, atol: float = 1e-4) -> list[str]:
    """List detections of one result that have no equal, within `atol`, in the other.

    The order does not matter. Rows with a score of 0 only fill a result up. If a result is full,
    detections whose score is within `atol` of its last score may be missing.
    """
    last = float(min(got.scores[-1], want.scores[-1])) if len(got.scores) == BEST else 0.0
    lines = []
    for name, a, b in (("missing", want, got), ("additional", got, want)):
        for box, score, label in zip(*a, strict=True):
            if float(score) <= last * (1 + atol):
                continue
            same = (
                (b.labels == label)
                & ((b.scores - score).abs() <= atol * score)
                & ((b.boxes - box).abs() <= atol).all(1)
            )
            if not same.any():
                lines.append(f"{name}: class {int(label)}, score {float(score):.5f}, box {box}")
    return lines
