"""SAHI and supervision, in plain numpy and, where they are installed, the packages themselves."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from codebases.sahi import prediction
from codebases.sahi.postprocess import combine
from codebases.slicer.detection import core
from codebases.slicer.detection.utils import iou_and_nms

from mdssd.integrations import _groups
from mdssd.integrations import sahi as fast_sahi
from mdssd.integrations import supervision as fast_supervision

SAHI = importlib.import_module("codebases.sahi")
SUPERVISION = importlib.import_module("codebases.slicer")


def rows(count: int, decimals: int = 9) -> np.ndarray:
    """Rows [N, 6]: boxes that overlap, scores and three classes; and two boxes without area."""
    generator = np.random.default_rng(count)
    low = 60 * generator.random((count, 2))
    size = 8 + 20 * generator.random((count, 2))
    size[:2] = 0
    scores = generator.random(count).round(decimals)
    return np.c_[low, low + size, scores, generator.integers(0, 3, count)]


def objects(kind: Any, count: int, decimals: int = 9) -> list[Any]:
    return [
        kind(
            bbox=row[:4].tolist(),
            category_id=int(row[5]),
            category_name=f"class {int(row[5])}",
            score=float(row[4]),
            shift_amount=[3, 4],
            full_shape=[200, 200],
        )
        for row in rows(count, decimals)
    ]


def seen(results: list[Any]) -> list[Any]:
    return [
        (
            np.round(each.bbox.to_xyxy(), 6).tolist(),
            each.category.id,
            each.category.name,
            round(each.score.value, 6),
            list(each.bbox.shift_amount),
        )
        for each in results
    ]


NAMES = ("NMSPostprocess", "GreedyNMMPostprocess", "NMMPostprocess")
SETTINGS = [
    (metric, agnostic, threshold)
    for metric in ("IOU", "IOS")
    for agnostic in (True, False)
    for threshold in (0.3, 0.5, 1.0)
]


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("name", NAMES)
def test_sahi(name: str, count: int, package: Any = SAHI, decimals: int = 9) -> None:
    module, kind = combine, prediction.ObjectPrediction
    if package is not SAHI:
        module = importlib.import_module("sahi.postprocess.combine")
        kind = importlib.import_module("sahi.prediction").ObjectPrediction
    for metric, agnostic, threshold in SETTINGS:
        merge = getattr(module, name)(threshold, metric, agnostic)
        want = seen(merge(objects(kind, count, decimals)))
        given = objects(kind, count, decimals)
        before = list(given)
        with fast_sahi.patch(package):
            got = seen(merge(given))
        assert got == want, (metric, agnostic, threshold)
        assert given == before
        assert seen(merge(objects(kind, count, decimals))) == want


@pytest.mark.parametrize("name", NAMES)
def test_sahi_ranks_equal_scores_by_their_boxes(name: str) -> None:
    test_sahi(name, 40, decimals=1 if name.startswith("NMS") else 9)
    merge = getattr(combine, name)(0.3, "IOS", False)
    want = seen(merge(objects(prediction.ObjectPrediction, 60, 1)))
    with fast_sahi.patch(SAHI):
        assert seen(merge(objects(prediction.ObjectPrediction, 60, 1))) == want


@pytest.mark.parametrize("name", NAMES[1:])
def test_what_sahi_does_itself(name: str) -> None:
    merge = getattr(combine, name)(0.5, "IOS", True)
    masked = objects(prediction.ObjectPrediction, 3)
    masked[1].mask = "a mask"
    with fast_sahi.patch(SAHI):
        assert merge(masked) == "the original"
        assert merge([]) == []
        merge.match_threshold = 0
        assert len(merge(objects(prediction.ObjectPrediction, 5))) == 1
        assert len(combine.nms(rows(5), "IOU", 0)) == 1
        assert len(combine.nms(rows(5), "IOU", 1.5)) == 5
        assert combine.nms(rows(0)) == combine.batched_nms(rows(0)) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_supervision(count: int, dtype: Any, package: Any = SUPERVISION) -> None:
    home, user = iou_and_nms, core
    if package is not SUPERVISION:
        home = importlib.import_module("supervision.detection.utils.iou_and_nms")
        user = None
    for name, alias in (
        ("box_non_max_suppression", "with_nms"),
        ("box_non_max_merge", "with_nmm"),
    ):
        for columns in (5, 6):
            given = rows(count)[:, :columns].astype(dtype)
            for metric in home.OverlapMetric:
                for threshold in (0.0, 0.3, 0.5, 1.0):
                    want = getattr(home, name)(given, threshold, metric)
                    with fast_supervision.patch(package):
                        got = getattr(home, name)(given, threshold, metric)
                        if user is not None:
                            got_there = getattr(user, alias)(
                                given, iou_threshold=threshold, overlap_metric=metric
                            )
                            assert np.array_equal(got_there, want) or got_there == want
                    assert type(got) is type(want)
                    assert np.array_equal(got, want) if name.endswith("sion") else got == want
    with fast_supervision.patch(package), pytest.raises(ValueError, match="iou_threshold"):
        home.box_non_max_merge(rows(3), 1.5)


def test_groups_of_many_boxes_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = _groups.as_tensor(rows(60)[:, :4])
    for metric in ("iou", "ios"):
        want = _groups.groups(boxes, 0.3, metric)
        assert sorted(i for group in want for i in group) == list(range(60))
        with monkeypatch.context() as patcher:
            patcher.setattr(_groups, "_PAIRS", 40)  # few heads at a time
            assert _groups.groups(boxes, 0.3, metric) == want


@pytest.mark.parametrize(
    "adapter, package, owners",
    [
        (fast_sahi, SAHI, (combine, combine.GreedyNMMPostprocess, combine.NMMPostprocess)),
        (fast_supervision, SUPERVISION, (iou_and_nms, core)),
    ],
    ids=["sahi", "supervision"],
)
def test_patch_and_undo(adapter: Any, package: Any, owners: tuple[Any, ...]) -> None:
    before = [dict(vars(owner)) for owner in owners]
    with adapter.patch(package):
        now = [dict(vars(owner)) for owner in owners]
        changed = [
            {name for name in new if new[name] is not old.get(name)}
            for new, old in zip(now, before, strict=True)
        ]
        both = {"box_non_max_suppression", "box_non_max_merge"}
        calls = [{"__call__"}] * 2
        assert changed in ([{"nms", "batched_nms"}, *calls], [both, both])
    assert [dict(vars(owner)) for owner in owners] == before
    for wrong in (None, object(), importlib.import_module("math")):
        with pytest.raises(TypeError, match=r"\.patch: targets: expected the package"):
            adapter.patch(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_against_sahi_itself(name: str) -> None:
    sahi = pytest.importorskip("sahi", reason="sahi is not installed")
    for count in (1, 2, 50):
        test_sahi(name, count, sahi)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_supervision_itself(dtype: Any) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    for count in (1, 2, 50):
        test_supervision(count, dtype, supervision)
