"""Calls of the operators: every operator with all its keywords, on inputs of every kind.

hypothesis draws the sizes, the keywords, the dtypes and the memory layouts; the numbers come from
the makers of `mdssd.testing` and a drawn seed, so that a call is drawn in little time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from strategies import HUGE
from torch import Tensor

from mdssd.testing import CASES, FLOATS, Case

CASE = {case.op: case for case in CASES}

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(FLOATS)
kinds = st.sampled_from(["random", "ties", "degenerate", "nan", "inf"])
thresholds = st.sampled_from([0.0, 1e-7, 0.3, 0.45, 0.5, 1.0]) | st.floats(0, 1)
eps = st.sampled_from([0.0, 0.0, 1e-5, 0.01, 1.0])
metrics = st.sampled_from(["iou", "ios", "diou"])
positive = st.floats(0.0625, 8)
variances = st.sampled_from([(0.1, 0.2), (1.0, 1.0)]) | st.tuples(positive, positive)
counts = st.integers(0, 9) | st.sampled_from([17, 33, 64, 65, 129])
ragged = st.lists(counts, max_size=4).map(tuple)


class Call(NamedTuple):
    """One call of an operator."""

    case: Case
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype with the widest tolerance of all the arguments."""
        order = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        flat = [t for arg in self.args for t in (arg if isinstance(arg, list) else [arg])]
        found = [t.dtype for t in flat if isinstance(t, Tensor) and t.dtype in order]
        return max(found, key=order.index, default=torch.float32)

    def __repr__(self) -> str:
        """Show shapes instead of numbers."""
        shown = [_shape(arg) for arg in self.args]
        return f"{self.case.op}({', '.join(shown)}, {self.kwargs})"


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}{list(value.shape)} with strides {value.stride()}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shape, value))}]"
    return repr(value)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Return a tensor of the same values with another memory layout."""
    if layout == "strided" and tensor.dim():
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "offset":
        return torch.cat([tensor.new_ones(3), tensor.flatten()])[3:].view(tensor.shape)
    if layout == "transposed" and tensor.dim() >= 2:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


layouts = st.sampled_from(
    ["as made", "as made", "strided", "offset", "transposed", "channels_last"]
)


@st.composite
def _keywords(draw: st.DrawFn, **optional: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Draw some of these keywords."""
    return {name: draw(value) for name, value in optional.items() if draw(st.booleans())}


_SHAPES = st.tuples(*[st.integers(0, 3), st.integers(0, 9) | st.just(65), *[st.integers(0, 6)] * 2])

_forces = st.builds(dict, force=st.sampled_from(["best_prior", "low_quality", "none"]))


def _hard(keywords: dict[str, Any]) -> dict[str, str]:
    """Replace soft suppression by the DIoU, which `detection_output` refuses."""
    return {"suppression": "nms"} if keywords.get("metric") == "diou" else {}


_metrics = st.builds(dict, iou_eps=eps) | st.builds(
    dict, metric=st.just("nwd"), nwd_constant=st.sampled_from([1e-9, 0.04, 0.5, 1e9])
)
rules = st.tuples(
    _forces | st.builds(dict, top_k=st.sampled_from([1, 2, 9, 500])),
    _metrics,
    st.just({}) | st.builds(dict, ignored=ragged, ignore_threshold=thresholds),
    st.just({}) | st.builds(dict, low_threshold=thresholds),
)


def _with_rules(arguments: dict[str, Any]) -> dict[str, Any]:
    """Merge the rules of a matching into its arguments, with as many lists as images."""
    for rule in arguments.pop("rules"):
        arguments |= rule
    if "ignored" in arguments:
        images = len(arguments["boxes"])
        arguments["ignored"] = (*arguments["ignored"], *[0] * images)[:images]
    if "low_threshold" in arguments:
        arguments["low_threshold"] *= arguments["iou_threshold"]
    return arguments


# For each operator, the arguments of its maker in mdssd.testing.
_ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "box_iou": st.fixed_dictionaries({"n": counts, "m": counts, "kind": kinds}),
    "encode_boxes": st.fixed_dictionaries(
        {"n": counts, "batch": st.sampled_from([(), (0,), (2,), (3, 2)])}
    ),
    "decode_boxes": st.fixed_dictionaries(
        {"n": counts, "batch": st.sampled_from([(), (0,), (2,), (3, 2)])}
    ),
    "match_priors": st.builds(
        dict,
        priors=counts,
        boxes=ragged,
        kind=kinds,
        iou_threshold=thresholds,
        priors_form=st.sampled_from(["cxcywh", "xyxy"]),
        rules=rules,
    ).map(_with_rules),
    "encode_targets": st.builds(
        dict,
        priors=counts,
        boxes=ragged,
        kind=kinds,
        iou_threshold=thresholds,
        variances=variances,
        rules=rules,
    ).map(_with_rules),
    "nms": st.fixed_dictionaries({"n": counts, "kind": kinds, "iou_eps": eps, "metric": metrics}),
    "batched_nms": st.fixed_dictionaries(
        {
            "n": counts,
            "classes": st.integers(0, 4),
            "kind": kinds,
            "iou_eps": eps,
            "metric": metrics,
        }
    ),
    "nms_padded": st.fixed_dictionaries(
        {
            "n": counts,
            "classes": st.none() | st.integers(0, 4),
            "kind": kinds,
            "iou_eps": eps,
            "metric": metrics,
        }
    ),
    **dict.fromkeys(
        ("soft_nms", "soft_nms_padded"),
        st.tuples(
            st.fixed_dictionaries(
                {"n": counts, "classes": st.none() | st.integers(0, 4), "kind": kinds}
            ),
            _keywords(
                method=st.sampled_from(["linear", "gaussian"]),
                iou_threshold=thresholds,
                sigma=st.sampled_from([1e-6, 0.01, 0.5, 1e6]),
                score_threshold=thresholds,
                max_detections=st.none() | st.integers(1, 300),
            ),
        ).map(lambda pair: pair[0] | pair[1]),
    ),
    **dict.fromkeys(
        ("merge_boxes", "merge_boxes_padded"),
        st.fixed_dictionaries(
            {
                "n": counts,
                "classes": st.integers(1, 4),
                "images": st.none() | st.integers(0, 3),
                "kind": kinds,
                "method": st.sampled_from(["nms", "greedy_nmm", "nmm", "wbf"]),
                "metric": st.sampled_from(["iou", "ios"]),
                "threshold": thresholds,
                "per_class": st.booleans(),
                "models": st.sampled_from([1, 2, 3, 2**31 - 1]),
            }
        ),
    ),
    "detection_output": st.tuples(
        st.fixed_dictionaries(
            {
                "images": st.integers(0, 3),
                "priors": counts,
                "classes": st.sampled_from([2, 2, 3, 5, 21, 81]),
                "kind": st.sampled_from(
                    ["trained", "untrained", "peaked", "alike", "ties", "nan", "inf", "empty"]
                    + ["focal"]
                ),
            }
        ),
        _keywords(
            score_threshold=thresholds,
            nms_threshold=thresholds,
            top_k=st.sampled_from([1, 2, 7, 400, 2**31, 2**62]),
            max_detections=st.sampled_from([1, 2, 9, 200, 300]),
            variances=variances,
            softmax=st.booleans(),
            per_class=st.booleans(),
            keep_empty=st.booleans(),
            iou_eps=eps,
            metric=metrics,
            max_log_scale=st.none()
            | st.sampled_from([0.1, math.log(1000 / 16), math.inf, -math.inf]),
            clip=st.none() | st.sampled_from([(1.0, 1.0), (0.75, 0.5), (0.0, 3.0)]),
            activation=st.none() | st.sampled_from(["softmax", "sigmoid", "none"]),
            background=st.booleans(),
            top_k_per_level=st.none() | st.sampled_from([1, 3, 50, 2**62]),
            class_agnostic=st.booleans(),
            suppression=st.sampled_from(["nms", "nms", "soft_linear", "soft_gaussian"]),
            soft_sigma=st.sampled_from([0.01, 0.5]),
        ),
    ).map(lambda pair: pair[0] | pair[1] | _hard(pair[1])),
    "l2norm": st.fixed_dictionaries({"shape": _SHAPES, "zeros": st.booleans()}),
    "l2norm_add_relu": st.fixed_dictionaries({"shape": _SHAPES, "zeros": st.booleans()}),
    "multibox_loss": st.builds(
        dict,
        images=st.integers(0, 3),
        priors=counts,
        classes=st.sampled_from([2, 3, 5, 21, 81]),
        positives=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        ignored=st.sampled_from([0.0, 0.3, 1.0]),
        kind=st.sampled_from(["random", "ties", "nan", "inf"]),
        neg_pos_ratio=st.sampled_from([0.0, 1.0, 3.0, 2.5, 100.0]),
        reduction=st.sampled_from(["batch", "image"]),
    ),
    "sigmoid_focal_loss": st.builds(
        dict,
        images=st.integers(0, 3),
        priors=counts,
        classes=st.sampled_from([1, 2, 3, 5, 20, 81]),
        positives=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        kind=st.sampled_from(["random", "nan", "inf", "large"]),
        alpha=st.sampled_from([None, 0.25, 0.5]),
        gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
        reduction=st.sampled_from(["batch", "image", "sum"]),
    ),
    "box_loss": st.builds(
        dict,
        images=st.integers(0, 3),
        priors=counts,
        positives=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        kind=st.sampled_from(["giou", "diou", "ciou", "nwd"]),
        boxes=st.sampled_from(["random", "same", "apart", "flat", "nan", "inf"]),
        reduction=st.sampled_from(["batch", "image", "sum"]),
    ),
    "resize": st.fixed_dictionaries(
        {
            "shape": st.tuples(*[st.integers(0, 2), *[st.integers(1, 9)] * 2, st.integers(0, 4)]),
            "size": st.tuples(st.integers(1, 12), st.integers(1, 12)),
        }
    ),
}
_TIE_FREE = ("encode_boxes", "decode_boxes")


@st.composite
def calls(draw: st.DrawFn, op: str) -> Call:
    """Draw a call of `op` with valid arguments."""
    case = CASE[op]
    dtype = draw(dtypes)
    generator = torch.Generator().manual_seed(draw(seeds))
    arguments = draw(_ARGUMENTS[op])
    if arguments.get("shape", (1, 1))[-1] == 0 and "zeros" in arguments:
        arguments["zeros"] = False
    if arguments.get("kind") == "inf" and "classes" in arguments and op == "detection_output":
        arguments["classes"] = max(3, arguments["classes"])  # the maker changes class 2
    args, kwargs = case.make(generator, dtype, **arguments)
    if op in _TIE_FREE:
        kwargs = {**kwargs, **draw(_keywords(variances=variances))}
    if op in ("nms", "batched_nms", "nms_padded"):  # the last positional argument is the threshold
        args = (*args[:-1], draw(thresholds))
    if op in ("l2norm", "l2norm_add_relu"):
        kwargs = {**kwargs, **draw(_keywords(eps=st.sampled_from([1e-38, 1e-10, 1e-3, 1.0])))}
    if op == "detection_output":
        args, kwargs = _with_scores(draw, args, kwargs)
    laid = []
    for position, arg in enumerate(args):
        if (
            isinstance(arg, Tensor)
            and arg.is_floating_point()
            and position
            and op not in ("multibox_loss", "box_loss")
        ):
            arg = _maybe_other_dtype(draw, op, position, arg)
        laid.append(_lay_out_all(draw, arg))
    return Call(case, tuple(laid), kwargs)


def _with_scores(draw: st.DrawFn, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Replace logits by scores, remove contradictions, and draw levels.

    A softmax or sigmoid may differ in its last bit, which decides ties: tests/ops/test_agreement.py
    tests it. Here both backends are given its result.
    """
    activation = kwargs.get("activation") or ("softmax" if kwargs.get("softmax", True) else "none")
    logits = args[1]
    if activation != "none":
        logits = logits.softmax(-1) if activation == "softmax" else logits.sigmoid()
    kwargs = {**kwargs, "activation": draw(st.sampled_from([None, "none"])), "softmax": False}
    if kwargs.get("class_agnostic"):
        kwargs["per_class"] = False
    if kwargs.get("top_k_per_level") and draw(st.booleans()):
        cut = sorted(draw(st.lists(st.integers(0, logits.shape[1]), max_size=3)))
        ends = zip([0, *cut], [*cut, logits.shape[1]], strict=True)
        kwargs["levels"] = [end - start for start, end in ends]
    return (args[0], logits, *args[2:]), kwargs


def _maybe_other_dtype(draw: st.DrawFn, op: str, position: int, tensor: Tensor) -> Tensor:
    """Give the arguments that may have a dtype of their own another one."""
    free = {
        "encode_boxes": (1,),
        "decode_boxes": (1,),
        "match_priors": (1,),
        "encode_targets": (2,),
    }
    free |= {"detection_output": (1, 2), "l2norm": (1,), "l2norm_add_relu": (2, 3)}
    if position in free.get(op, ()) and draw(st.booleans()):
        return tensor.to(draw(dtypes))
    return tensor


def _lay_out_all(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, list):
        return [_lay_out_all(draw, item) for item in value]
    return lay_out(value, draw(layouts)) if isinstance(value, Tensor) else value


# Arguments that no operator accepts in place of a tensor or a number, and some that it may.
_WRONG = st.sampled_from(
    [
        *(None, "cpu", b"", object(), 1 + 2j, True, (), [], {}, [None], (1,), (1, 2, 3), "xyxy"),
        *(0, -1, 2, 2**31, 2**63, 2**64, HUGE, -HUGE, 0.5, -0.5, 1e-39, 1e39, 1e308),
        *(math.nan, math.inf, -math.inf, (HUGE, 1), (0, 0), (math.nan, 1), (math.inf, math.inf)),
        *(np.float32(0.5), np.int64(3), np.zeros((3, 4), np.float32), ("a", "b"), [0.1, 0.2]),
    ]
)


@st.composite
def wrong_tensors(draw: st.DrawFn, original: Tensor) -> Any:
    """Draw something else than this tensor: of another shape, dtype, layout or kind."""
    kind = draw(st.sampled_from(["dtype", "shape", "axis", "meta", "value", "other"]))
    if kind == "dtype":
        others = [torch.int64, torch.int32, torch.bool, torch.uint8, torch.complex64, *FLOATS]
        return original.to(draw(st.sampled_from(others)))
    if kind == "shape":
        return original[..., :-1] if original.dim() and original.shape[-1] else original[None]
    if kind == "axis":
        return draw(st.sampled_from([original[None], original.flatten(), original.sum()]))
    if kind == "meta":
        return original.to("meta")
    if kind == "value" and original.dtype == torch.int64:
        return torch.full_like(original, draw(st.sampled_from([-1, 0, 255, 2**31, -(2**63)])))
    return draw(_WRONG)


@st.composite
def wrong_calls(draw: st.DrawFn, op: str) -> Call:
    """Draw a call of `op` with one argument changed to something that may be wrong."""
    call = draw(calls(op))
    args, kwargs = list(call.args), dict(call.kwargs)
    place = draw(st.sampled_from([*range(len(args)), *_keyword_names(op)]))
    if isinstance(place, str):
        kwargs[place] = draw(_WRONG)
    elif isinstance(args[place], Tensor):
        args[place] = draw(wrong_tensors(args[place]))
    elif isinstance(args[place], list) and args[place] and draw(st.booleans()):
        items = list(args[place])
        at = draw(st.integers(0, len(items) - 1))
        items[at] = draw(wrong_tensors(items[at]))
        args[place] = items
    else:
        args[place] = draw(_WRONG)
    return Call(call.case, tuple(args), kwargs)


def _keyword_names(op: str) -> list[str]:
    names = {
        "detection_output": "score_threshold nms_threshold top_k max_detections variances softmax "
        "per_class keep_empty iou_eps max_log_scale clip metric activation background levels "
        "top_k_per_level class_agnostic suppression soft_sigma",
        "match_priors": "iou_threshold iou_eps priors_form low_threshold force top_k metric "
        "nwd_constant ignored_xyxy ignore_threshold",
        "encode_targets": "iou_threshold iou_eps variances low_threshold force top_k metric "
        "nwd_constant ignored_xyxy ignore_threshold",
        "encode_boxes": "variances",
        "decode_boxes": "variances",
        "nms": "iou_eps metric",
        "batched_nms": "iou_eps metric",
        "nms_padded": "iou_eps metric",
        "soft_nms": "labels method iou_threshold sigma score_threshold max_detections",
        "soft_nms_padded": "labels method iou_threshold sigma score_threshold max_detections",
        "merge_boxes": "method metric threshold per_class images models",
        "merge_boxes_padded": "method metric threshold per_class images models",
        "l2norm": "eps",
        "l2norm_add_relu": "eps",
        "multibox_loss": "neg_pos_ratio reduction",
        "sigmoid_focal_loss": "alpha gamma reduction",
        "box_loss": "kind variances nwd_constant eps reduction",
    }
    return names.get(op, "").split()
