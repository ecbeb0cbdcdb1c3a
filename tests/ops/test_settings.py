"""The settings of the operators are the same in Python, in C++ and in the torch ops."""

from __future__ import annotations

import cProfile
import inspect
import pstats
import traceback
from typing import Any, NamedTuple

import pytest
import torch

from mdssd import ops
from mdssd.ops import _dispatch, _modules, _settings

SETTINGS = {
    name: cls
    for name, cls in inspect.getmembers(_settings, inspect.isclass)
    if name.endswith("Settings")
}

# Exported programs hold these arguments. A change makes them unreadable.
SCHEMAS = """
box_iou(Tensor a_xyxy, Tensor b_xyxy) -> Tensor
box_iou_backward(Tensor grad, Tensor a_xyxy, Tensor b_xyxy) -> (Tensor, Tensor)
box_loss(Tensor loc, Tensor loc_targets, Tensor labels, Tensor priors_cxcywh, int kind, float v0, \
float v1, float nwd_constant, float eps, bool per_image, bool normalise) -> (Tensor, Tensor)
box_loss_backward(Tensor grad_loss, Tensor loc, Tensor loc_targets, Tensor labels, \
Tensor priors_cxcywh, Tensor normaliser, int kind, float v0, float v1, float nwd_constant, \
float eps, bool per_image, bool normalise) -> Tensor
decode_boxes(Tensor loc, Tensor priors_cxcywh, float v0, float v1) -> Tensor
decode_boxes_backward(Tensor grad, Tensor loc, Tensor priors_cxcywh, float v0, float v1) -> Tensor
detection_output(Tensor loc, Tensor logits, Tensor priors_cxcywh, float score_threshold, \
float nms_threshold, int top_k, int max_detections, float v0, float v1, bool softmax, \
bool per_class, bool keep_empty, float iou_eps, float? max_log_scale, float? clip_width, \
float? clip_height, bool ios=False, bool sigmoid=False, bool background=True, \
SymInt[]? levels=None, int? top_k_per_level=None, bool class_agnostic=False, int suppression=0, \
float soft_sigma=0.5, bool diou=False) \
-> (Tensor, Tensor, Tensor, Tensor)
encode_boxes(Tensor boxes_xyxy, Tensor priors_cxcywh, float v0, float v1) -> Tensor
encode_boxes_backward(Tensor grad, Tensor boxes_xyxy, Tensor priors_cxcywh, float v0, \
float v1) -> Tensor
encode_targets(Tensor gt_xyxy, Tensor gt_labels, Tensor offsets, Tensor priors_cxcywh, \
float iou_threshold, float v0, float v1, float iou_eps, float? low_threshold=None, int force=0, \
int top_k=1, float? nwd_constant=None) -> (Tensor, Tensor)
ignore_priors(Tensor marks, Tensor ignored_xyxy, Tensor offsets, Tensor priors_cxcywh, \
float threshold, int background, bool corners) -> Tensor
l2norm(Tensor x, Tensor scale, float eps) -> (Tensor, Tensor)
l2norm_add_relu(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, float eps) \
-> (Tensor, Tensor, Tensor)
l2norm_add_relu_backward(Tensor grad, Tensor y, Tensor a, Tensor b, Tensor scale_a, \
Tensor scale_b, Tensor ra, Tensor rb) -> (Tensor, Tensor, Tensor, Tensor)
l2norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor r) -> (Tensor, Tensor)
match_priors(Tensor gt_xyxy, Tensor offsets, Tensor priors_cxcywh, float iou_threshold, \
float iou_eps, bool corners, float? low_threshold=None, int force=0, int top_k=1, \
float? nwd_constant=None) -> (Tensor, Tensor)
merge_boxes(Tensor boxes_xyxy, Tensor scores, Tensor? labels, Tensor? images, float threshold, \
int method, bool ios, int models) -> (Tensor boxes, Tensor scores, Tensor index)
merge_boxes_padded(Tensor boxes_xyxy, Tensor scores, Tensor? labels, Tensor? images, \
float threshold, int method, bool ios, int models) -> (Tensor boxes, Tensor scores, Tensor index, \
Tensor count)
multibox_loss(Tensor loc, Tensor logits, Tensor loc_targets, Tensor labels, float neg_pos_ratio, \
bool per_image) -> (Tensor, Tensor, Tensor, Tensor)
multibox_loss_backward(Tensor grad_loc_loss, Tensor grad_conf_loss, Tensor loc, Tensor logits, \
Tensor loc_targets, Tensor labels, Tensor selected, Tensor normaliser) -> (Tensor, Tensor)
nms(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, float iou_threshold, float iou_eps, \
bool ios=False, bool diou=False) -> Tensor
nms_padded(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, float iou_threshold, float iou_eps, \
bool ios=False, bool diou=False) -> (Tensor keep, Tensor count)
resize(Tensor images, SymInt height, SymInt width) -> Tensor
sigmoid_focal_loss(Tensor logits, Tensor labels, float positive_weight, float negative_weight, \
float gamma, bool per_image, bool normalise) -> (Tensor, Tensor)
sigmoid_focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor labels, Tensor normaliser, \
float positive_weight, float negative_weight, float gamma, bool per_image, bool normalise) \
-> Tensor
soft_nms(Tensor boxes_xyxy, Tensor scores, Tensor? labels, bool gaussian, float iou_threshold, \
float sigma, float score_threshold, int? max_detections) -> (Tensor keep, Tensor scores)
soft_nms_padded(Tensor boxes_xyxy, Tensor scores, Tensor? labels, bool gaussian, \
float iou_threshold, float sigma, float score_threshold, int? max_detections) \
-> (Tensor keep, Tensor scores, Tensor count)
"""


@pytest.mark.parametrize("module", ["native", "simt"])
def test_every_struct_has_the_fields_of_its_class(module: str) -> None:
    """A field that bind.cpp leaves out would silently keep the value 0."""
    kernels = getattr(_modules, module)
    if kernels is None:
        pytest.skip(f"no {module} module here")
    fields = {name: list(cls._fields) for name, cls in SETTINGS.items()}
    assert kernels.settings_fields == fields


def test_the_schemas_are_those_that_exported_programs_hold() -> None:
    names = sorted(ops.backends())
    got = [str(getattr(torch.ops.mdssd, name).default._schema) for name in names]
    assert [line.removeprefix("mdssd::") for line in got] == SCHEMAS.strip().splitlines()


def test_a_field_with_a_default_has_it_in_the_schema() -> None:
    class Settings(NamedTuple):
        ratio: float
        steps: int = 3
        exact: bool = False
        limit: float | None = None
        count: int | None = None
        sizes: tuple[int, ...] | None = None

    Settings.__annotations__ = {
        "ratio": float,
        "steps": int,
        "exact": bool,
        "limit": float | None,
        "count": int | None,
        "sizes": tuple[int, ...] | None,
    }
    assert _settings.fields_of_schema(Settings) == (
        "float ratio, int steps=3, bool exact=False, float? limit=None, int? count=None, "
        "SymInt[]? sizes=None"
    )


def test_a_list_may_be_none() -> None:
    """AOTInductor passes None in place of an empty list."""
    schemas = [getattr(torch.ops.mdssd, name).default._schema for name in ops.backends()]
    lists = [arg for schema in schemas for arg in schema.arguments if "List" in str(arg.type)]
    assert [arg.name for arg in lists if "Optional" not in str(arg.type)] == []
    assert "levels" in [arg.name for arg in lists]


def detect() -> Any:
    return ops.detection_output(torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.rand(3, 4))


def test_a_traceback_names_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("broken")

    table = _dispatch._implementations["detection_output"]
    monkeypatch.setitem(table, "reference", broken)
    with ops.backend("reference"), pytest.raises(RuntimeError) as raised:
        detect()
    frames = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    inner = frames[frames.index("detect") + 1 : frames.index("broken")]
    assert inner == ["detection_output"] * len(inner) and len(inner) == 3


def test_a_profile_names_the_operator() -> None:
    with cProfile.Profile() as profile:
        detect()
    called = [(file, name) for file, _, name in pstats.Stats(profile).stats]
    names = {name for file, name in called if file == _dispatch.__file__}
    assert "detection_output" in names and not names & {"call", "run", "<lambda>"}
