"""The settings of the operators: the checked arguments of a public function besides tensors.

The settings of a call travel whole, as the last argument of every backend's form. Each class has a
twin of the same name and fields in csrc/ops.h, which csrc/bind.cpp fills. The fields are also the
last arguments of the torch op, in this order. Exported programs hold these arguments, so a new
field goes to the end and has a default: older programs then still run.

They are named tuples rather than frozen dataclasses, which take five times as long to make: 2 us
for 13 fields.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

# Of `merge_boxes`. The order is that of `enum class MergeMethod` in csrc/ops.h.
METHODS = ("nms", "greedy_nmm", "nmm", "wbf")
DECAYS = ("linear", "gaussian")  # of `soft_nms`
# Of a Gaussian's decay: exp(-IoU^2 / sigma) is exp(-(IoU^2 * (1 / sigma))), finite in between.
SIGMAS = (1e-6, 1e6)
# Of `detection_output`. The order is that of `enum class SuppressionKind` in csrc/ops.h.
SUPPRESSIONS = ("nms", "soft_linear", "soft_gaussian")
NMS_METRICS = ("iou", "ios", "diou")  # of `nms` and `detection_output`
# Of `match_priors`. The order is that of `enum class Force` in csrc/ops.h.
FORCES = ("best_prior", "low_quality", "none")
KINDS = ("giou", "diou", "ciou", "nwd")  # of `box_loss`: `enum class BoxLossKind` in csrc
REDUCTIONS = ("batch", "image", "sum")  # of `sigmoid_focal_loss` and `box_loss`
VARIANCES = (0.1, 0.2)  # of the centre and the size: the default of every operator


class BoxCodingSettings(NamedTuple):
    """Settings of `encode_boxes` and `decode_boxes`."""

    v0: float  # variance of the centre
    v1: float  # variance of the size


class MatchPriorsSettings(NamedTuple):
    """Settings of `match_priors`."""

    iou_threshold: float  # least overlap of a match
    iou_eps: float  # added to the area of the union
    corners: bool  # the priors are x1, y1, x2, y2 instead of centre and size
    low_threshold: float | None = None  # below it background, from it on ignored; None: no band
    force: int = 0  # a place in FORCES
    top_k: int = 1  # priors that a box takes, with "best_prior"
    nwd_constant: float | None = None  # of the Wasserstein distance; None: the overlap is the IoU


class EncodeTargetsSettings(NamedTuple):
    """Settings of `encode_targets`."""

    iou_threshold: float  # least overlap of a match
    v0: float  # variance of the centre
    v1: float  # variance of the size
    iou_eps: float  # added to the area of the union
    low_threshold: float | None = None  # below it background, from it on ignored; None: no band
    force: int = 0  # a place in FORCES
    top_k: int = 1  # priors that a box takes, with "best_prior"
    nwd_constant: float | None = None  # of the Wasserstein distance; None: the overlap is the IoU

    def match(self) -> MatchPriorsSettings:
        """Return the settings of the matching that comes first."""
        rest = self.low_threshold, self.force, self.top_k, self.nwd_constant
        return MatchPriorsSettings(self.iou_threshold, self.iou_eps, False, *rest)


class IgnorePriorsSettings(NamedTuple):
    """Settings of the op that marks the priors on boxes to be ignored."""

    threshold: float  # least share of a prior's area that lies in such a box
    background: int  # what marks a prior as background; one less marks it as ignored
    corners: bool  # the priors are x1, y1, x2, y2 instead of centre and size


class NmsSettings(NamedTuple):
    """Settings of `nms`, `batched_nms` and `nms_padded`."""

    iou_threshold: float  # a box is kept if its IoU with every kept box is at most this
    iou_eps: float  # added to the area of the union
    ios: bool = False  # divide by the area of the smaller box instead of the union's
    diou: bool = False  # subtract the squared distance of the centres from the IoU; not with ios


class SoftNmsSettings(NamedTuple):
    """Settings of `soft_nms` and `soft_nms_padded`."""

    gaussian: bool  # the decay of scores; if False, it is linear
    iou_threshold: float  # linear: scores decay above this IoU
    sigma: float  # gaussian: the width of the decay
    score_threshold: float  # a box is chosen as long as its score is not below this
    max_detections: int | None  # boxes of the result; None: no limit


class MergeBoxesSettings(NamedTuple):
    """Settings of `merge_boxes` and `merge_boxes_padded`."""

    threshold: float  # boxes are merged if their IoU is above this
    method: int  # a place in METHODS
    ios: bool  # divide by the area of the smaller box instead of the union's
    models: int  # with "wbf": a mean score is reduced by the share of models with a box


class MultiboxLossSettings(NamedTuple):
    """Settings of `multibox_loss`."""

    neg_pos_ratio: float  # mined negatives per positive
    per_image: bool  # one loss per image instead of one per batch


class SigmoidFocalLossSettings(NamedTuple):
    """Settings of `sigmoid_focal_loss`."""

    positive_weight: float  # of the entries of a prior's own class
    negative_weight: float  # of all other entries
    gamma: float  # exponent of the probability of what is wrong
    per_image: bool  # one loss per image instead of one per batch
    normalise: bool  # divide by the number of positives


class BoxLossSettings(NamedTuple):
    """Settings of `box_loss`."""

    kind: int  # a place in KINDS
    v0: float  # variance of the centre
    v1: float  # variance of the size
    nwd_constant: float  # divides Wasserstein's distance
    eps: float  # added to what is divided by
    per_image: bool  # one loss per image instead of one per batch
    normalise: bool  # divide by the number of positives


class DetectionOutputSettings(NamedTuple):
    """Settings of `detection_output`. A limit is None rather than infinity if there is none, since
    AOTInductor cannot load infinity. No levels are None rather than (), which it loads as None.
    """

    score_threshold: float  # a score must be above this
    nms_threshold: float  # NMS keeps an IoU of at most this
    top_k: int  # candidates of a class that enter NMS
    max_detections: int  # rows of the result
    v0: float  # variance of the centre
    v1: float  # variance of the size
    softmax: bool  # if False, the logits are scores
    per_class: bool  # each class has rows of its own
    keep_empty: bool  # if False, boxes of zero area suppress one another
    iou_eps: float  # added to the area of the union
    max_log_scale: float | None  # largest log(size / prior's size) of a decoded box
    clip_width: float | None  # decoded boxes are clipped to this width ...
    clip_height: float | None  # ... and this height; both are set or neither
    ios: bool = False  # NMS divides by the area of the smaller box
    sigmoid: bool = False  # unless softmax is set, scores are the sigmoid of the logits
    background: bool = True  # column 0 is that of the background
    levels: tuple[int, ...] | None = None  # priors of each feature map; None for a single one
    top_k_per_level: int | None = None  # candidates of a level, of all classes together
    class_agnostic: bool = False  # one NMS, and one top_k, over all classes together
    suppression: int = 0  # a place in SUPPRESSIONS
    soft_sigma: float = 0.5  # the width of a Gaussian's decay
    diou: bool = False  # NMS subtracts the squared distance of the centres; not with ios


_SCHEMA_TYPES = {
    float: "float",
    int: "int",
    bool: "bool",
    float | None: "float?",
    int | None: "int?",
    tuple[int, ...] | None: "SymInt[]?",
}


def fields_of_schema(settings: Any) -> str:
    """Write the fields of a settings class as arguments of a schema, with their defaults."""
    if settings is None:
        return ""
    types, defaults = get_type_hints(settings), settings._field_defaults
    fields = []
    for field in settings._fields:
        fields.append(f"{_SCHEMA_TYPES[types[field]]} {field}")
        if field in defaults:
            fields[-1] += f"={defaults[field]}"
    return ", ".join(fields)
