"""A detector as a file for other programs: ONNX, torch.export, AOTInductor.

Each takes pixels and gives what `ops.detection_output` gives, in one call: ONNX without this code,
the others after `import mdssd.ops`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.models.vgg import MEAN_RGB
from mdssd.names import EXPORTS
from mdssd.ops._dispatch import plain_ops
from mdssd.ops._settings import VARIANCES
from mdssd.system.files import atomic_write
from mdssd.weights.checkpoint import check_classes

if TYPE_CHECKING:
    from mdssd.models import SingleShotDetector


class _Pipeline(nn.Module):
    """Pixels [B, S, S, 3] uint8 RGB -> boxes, scores, labels, count."""

    mean: Tensor

    def __init__(
        self, model: SingleShotDetector, mean: Sequence[float], settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        values = torch.tensor(mean, dtype=torch.float32, device=model.priors.device)
        self.register_buffer("mean", values)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        loc, logits = self.model((pixels - self.mean).permute(0, 3, 1, 2))
        return tuple(ops.detection_output(loc, logits, self.model.priors, **self.settings))


def export(
    model: SingleShotDetector,
    path: str | os.PathLike[str],
    *,
    form: str = "onnx",
    classes: Sequence[str],
    mean: Sequence[float] = MEAN_RGB,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
) -> None:
    """Write the whole detector, from pixels to detections, into one file.

    Input "pixels" [batch, S, S, 3] uint8: RGB, the image resized to S x S, one image or more.
    Outputs "boxes" [batch, K, 4] float32 xyxy, 0-1, not clipped; "scores" [batch, K], falling;
    "labels" [batch, K] int64, from 1; "count" [batch] int64, behind which all rows are 0; K is
    `max_detections`. With the file come the classes, the mean, S and the settings.

    Args:
        model: a model of `mdssd.models` in float32; it is put in evaluation mode.
        form: "onnx": standard operators only, NonMaxSuppression among them; metadata_props hold the
            facts, as JSON; takes the packages onnx and onnxscript. "pt2": for `torch.export.load`
            after `import mdssd.ops`, which it calls; the extra file mdssd.json holds the facts.
            "aoti": compiled, with a C++ compiler, for the device that the model is on, for
            `torch._inductor.aoti_load_package`, also after `import mdssd.ops`.
        classes: names of labels 1, 2 ...
        mean: RGB, subtracted from the pixels (0-255), inside.
        score_threshold, nms_threshold, top_k, max_detections: as in `ops.detection_output`.

    Raises ValueError or TypeError for arguments out of range, ImportError where a package is
    missing, OSError where the file cannot be written.
    """
    if form not in EXPORTS:
        raise ValueError(f"export: form: expected one of {list(EXPORTS)}, got {form!r}")
    check_classes("export", classes, model.num_classes)
    settings: dict[str, Any] = {
        "score_threshold": score_threshold,
        "nms_threshold": nms_threshold,
        "top_k": top_k,
        "max_detections": max_detections,
    }
    if len(mean) != 3 or not all(map(math.isfinite, mean)):
        raise ValueError(f"export: mean: expected three finite numbers, got {list(mean)}")
    nothing = model.priors.new_zeros(0, 4)
    ops.detection_output(nothing[None], nothing[None, :, :2], nothing, **settings)  # checks them
    facts: dict[str, Any] = {
        "classes": list(classes),
        "mean": [float(value) for value in mean],
        "input_size": model.input_size,
        "model": model.config(),
        **settings,
    }
    model.eval()
    path = Path(path)
    with torch.no_grad(), _quiet():
        if form == "onnx":
            content = _onnx(model, facts).SerializeToString()
            with atomic_write(path, "wb") as file:
                file.write(content)
            return
        program = _traced(_Pipeline(model, facts["mean"], settings), _pixels(model))
        with atomic_write(path, "wb") as file, tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "model.pt2"
            if form == "pt2":
                torch.export.save(program, package, extra_files={"mdssd.json": json.dumps(facts)})
            else:
                texts = {name: json.dumps(value) for name, value in facts.items()}
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(package),
                    inductor_configs={"aot_inductor.metadata": texts},
                )
            file.write(package.read_bytes())


def _pixels(model: SingleShotDetector) -> Tensor:
    side = model.input_size
    return torch.zeros(2, side, side, 3, dtype=torch.uint8, device=model.priors.device)


def _traced(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters say of packages that are not needed and of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


# --- ONNX ----------------------------------------------------------------------------------------


def _onnx(model: SingleShotDetector, facts: dict[str, Any]) -> Any:
    """The network as PyTorch exports it, between nodes for the pixels and for the detections."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError:
        raise ImportError("export: onnx needs packages: pip install onnx onnxscript") from None
    side = model.input_size
    images = torch.zeros(2, 3, side, side, device=model.priors.device)
    exported = torch.onnx.export(
        _traced(model, images).run_decompositions(plain_ops()),
        input_names=["images"],
        output_names=["loc", "logits"],
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
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
    graph.input.append(info("pixels", kinds.UINT8, ["batch", side, side, 3]))
    graph.output.extend(
        [
            info("boxes", kinds.FLOAT, ["batch", rows, 4]),
            info("scores", kinds.FLOAT, ["batch", rows]),
            info("labels", kinds.INT64, ["batch", rows]),
            info("count", kinds.INT64, ["batch"]),
        ]
    )
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in facts.items()})
    onnx.checker.check_model(proto)
    return proto


def _detection_nodes(priors: Tensor, facts: dict[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """`ops.detection_output` in operators of ONNX, from "loc" and "logits"; the constants first.

    Ties fall as there: TopK prefers the lower index, and the last one goes over prior, then class.
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
        # NonMaxSuppression knows no limit ahead of it: the scores behind the best become 0.
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
