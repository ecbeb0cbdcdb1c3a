"""A detector as an ONNX model, in standard operators only."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from mdssd.detection.quantized import QuantizedNetwork
from mdssd.models import SingleShotDetector
from mdssd.ops._dispatch import plain_ops
from mdssd.ops._settings import VARIANCES
from mdssd.priors.maps import width_height


def traced(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Export a module for any number of images, from an example of two.

    The program holds no stack traces, which would name the folders of this machine.
    """
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def network_proto(model: SingleShotDetector | QuantizedNetwork) -> Any:
    """Return a network as ONNX, from "images" [B, 3, H, W] to "loc" and "logits".

    Raises:
        ImportError: it needs the packages onnx and onnxscript.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError:
        raise ImportError("export: onnx needs packages: pip install onnx onnxscript") from None
    if isinstance(model, QuantizedNetwork):
        return onnx.load_from_string(model.onnx)
    width, height = width_height(model.input_size)
    images = torch.zeros(2, 3, height, width, device=model.priors.device)
    exported = torch.onnx.export(
        traced(model, images).run_decompositions(plain_ops()),
        input_names=["images"],
        output_names=["loc", "logits"],
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    return exported.model_proto


def onnx_model(model: SingleShotDetector | QuantizedNetwork, facts: dict[str, Any]) -> Any:
    """Return the network between nodes for the pixels and the detections."""
    proto = network_proto(model)
    import onnx

    width, height = width_height(model.input_size)
    constants, nodes = _detection_nodes(model.priors, facts)
    mean = torch.tensor(facts["mean"], dtype=torch.float32)
    node, info, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    before = [
        node("Cast", ["pixels"], ["detect_float"], to=kinds.FLOAT),
        node("Sub", ["detect_float", "detect_mean"], ["detect_centred"]),
        node("Transpose", ["detect_centred"], ["images"], perm=[0, 3, 1, 2]),
    ]
    graph = proto.graph
    body = [*before, *graph.node, *nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(body)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value.cpu().numpy(), name)
        for name, value in {**constants, "detect_mean": mean}.items()
    )
    rows = min(facts["max_detections"], len(model.priors) * len(facts["classes"]))
    texts = facts["inputs"] | facts["outputs"]
    graph.input.append(info("pixels", kinds.UINT8, ["batch", height, width, 3], texts["pixels"]))
    graph.output.extend(
        info(name, kind, ["batch", *shape], texts[name])
        for name, kind, shape in (
            ("boxes", kinds.FLOAT, [rows, 4]),
            ("scores", kinds.FLOAT, [rows]),
            ("labels", kinds.INT64, [rows]),
            ("count", kinds.INT64, []),
        )
    )
    proto.doc_string = graph.doc_string = "\n".join(
        [
            f"An object detector, {model.name}: from pixels to boxes. The classes, the thresholds "
            "and the mean are in the metadata, as JSON.",
            *(f"{name} {text}" for name, text in texts.items()),
        ]
    )
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in facts.items()})
    onnx.checker.check_model(proto)
    return proto


def _detection_nodes(priors: Tensor, facts: dict[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """Return constants and nodes that compute `ops.detection_output` from "loc" and "logits".

    Ties are broken in the same way: TopK prefers the lower index, and the last TopK goes over the
    priors first, then over the classes.
    """
    import onnx

    sizes = priors[:, 2:]
    foreground = len(facts["classes"])
    candidates = min(facts["top_k"], len(priors))
    rows = min(facts["max_detections"], len(priors) * foreground)
    constants = {
        "0": torch.tensor([0]),
        "1": torch.tensor([1]),
        "2": torch.tensor([2]),
        "4": torch.tensor([4]),
        "end": torch.tensor([foreground + 1]),
        "no_score": torch.tensor(0.0),
        "no_label": torch.tensor(0),
        "middle": priors[:, :2],
        "middle_scale": VARIANCES[0] * sizes,
        "size_scale": torch.tensor(VARIANCES[1]),
        "half_size": sizes / 2,
        "candidates": torch.tensor([candidates]),
        "best": torch.tensor([rows]),
        "flat": torch.tensor([0, -1]),
        "classes": torch.tensor(foreground),
        "first_label": torch.tensor(1),
        "iou": torch.tensor([facts["nms_threshold"]]),
        "threshold": torch.tensor([facts["score_threshold"]]),
    }

    def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
        theirs, ours = (
            [name if name in _PUBLIC else f"detect_{name}" for name in text.split()]
            for text in (inputs, outputs)
        )
        return onnx.helper.make_node(kind, theirs, ours, **attributes)

    nodes = [
        node("Slice", "loc 0 2 2", "shift"),
        node("Slice", "loc 2 4 2", "stretch"),
        node("Mul", "shift middle_scale", "moved"),
        node("Add", "moved middle", "centre"),
        node("Mul", "stretch size_scale", "exponent"),
        node("Exp", "exponent", "growth"),
        node("Mul", "growth half_size", "half"),
        node("Sub", "centre half", "low"),
        node("Add", "centre half", "high"),
        node("Concat", "low high", "corners", axis=2),  # [B, N, 4]
        node("Softmax", "logits", "probability", axis=-1),
        node("IsNaN", "probability", "broken"),
        node("Where", "broken no_score probability", "sound"),
        node("Slice", "sound 1 end 2", "foreground"),
        node("Transpose", "foreground", "by_class", perm=[0, 2, 1]),  # [B, C - 1, N]
        # NonMaxSuppression has no limit on its candidates: the scores after the best become 0.
        node("TopK", "by_class candidates", "top_scores top_priors", axis=2),
        node("Shape", "by_class", "shape"),
        node("ConstantOfShape", "shape", "zeros"),
        node("ScatterElements", "zeros top_priors top_scores", "entering", axis=2),
        node("NonMaxSuppression", "corners entering best iou threshold", "kept"),  # [K, 3]
        node("GatherND", "entering kept", "kept_scores"),
        node("ScatterND", "zeros kept kept_scores", "surviving"),
        node("Transpose", "surviving", "by_prior", perm=[0, 2, 1]),  # [B, N, C - 1]
        node("Reshape", "by_prior flat", "row"),
        node("TopK", "row best", "scores places", axis=1),  # [B, K]
        node("Greater", "scores threshold", "found"),
        node("Cast", "found", "found_count", to=onnx.TensorProto.INT64),
        node("ReduceSum", "found_count 1", "count", keepdims=0),
        node("Mod", "places classes", "class"),
        node("Add", "class first_label", "any_label"),
        node("Where", "found any_label no_label", "labels"),
        node("Div", "places classes", "prior"),
        node("Unsqueeze", "prior 2", "prior_index"),
        node("GatherND", "corners prior_index", "any_box", batch_dims=1),
        node("Unsqueeze", "found 2", "found_box"),
        node("Where", "found_box any_box no_score", "boxes"),
    ]
    return {f"detect_{name}": value for name, value in constants.items()}, nodes


_PUBLIC = ("loc", "logits", "boxes", "scores", "labels", "count")
