"""`merge_boxes` against definitions in plain numpy, written from the papers' and tools' rules."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdssd import ops

BACKENDS = [b for b in ops.backends()["merge_boxes_padded"] if b not in ("cuda", "triton")]


class Found(NamedTuple):
    boxes: np.ndarray  # [N, 4]
    scores: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    images: np.ndarray  # [N]


Row = tuple[int, float, int, tuple[float, ...]]  # image, score, index of the first box, box


def overlap(a: np.ndarray, b: np.ndarray, metric: str) -> Any:
    """IoU or IoS of boxes [..., 4] and [..., 4]; 0 if one of them has no area."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.maximum(sides, 0).prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    whole = np.minimum(area_a, area_b) if metric == "ios" else area_a + area_b - intersection
    return np.where(whole > 0, intersection / np.where(whole > 0, whole, 1), 0)


def grown(box: np.ndarray, members: list[np.ndarray], threshold: float, metric: str) -> np.ndarray:
    """The box after the members have joined it, except those that it does not overlap by then."""
    for member in members:
        if overlap(box, member, metric) > threshold:
            corners = np.stack([box, member])
            box = np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)])
    return box


def suppressed(x: Found, ranked: list[int], method: str, threshold: float, metric: str) -> Any:
    """nms, greedy_nmm and nmm of one group, `ranked` by falling score.

    The closed form: a box is claimed by the first of the earlier boxes that overlaps it. For nmm
    all earlier boxes count, for the others those which nothing claims.
    """
    boxes = x.boxes[ranked]
    over = np.tril(overlap(boxes[:, None], boxes[None], metric) > threshold, -1)
    parent, root = list(range(len(ranked))), list(range(len(ranked)))
    for j in range(len(ranked)):
        earlier = [i for i in np.flatnonzero(over[j]) if method == "nmm" or parent[i] == i]
        if earlier:
            parent[j] = int(earlier[0])
            root[j] = root[parent[j]]
    for k in range(len(ranked)):
        if root[k] != k:
            continue
        joined = [j for j in range(k + 1, len(ranked)) if root[j] == k and method != "nms"]
        if method == "nmm":
            joined.sort(key=lambda j: (parent[j], ranked[j]))
        box = grown(boxes[k], [boxes[j] for j in joined], threshold, metric)
        yield float(x.scores[ranked[k]]), k, box


def fused(x: Found, ranked: list[int], threshold: float, metric: str, models: int) -> Any:
    """Weighted boxes fusion of one group."""
    clusters: list[list[int]] = []
    means: list[np.ndarray] = []
    for i in ranked:
        overlaps = [overlap(x.boxes[i], mean, metric) for mean in means]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] <= threshold:
            clusters.append([i])
            means.append(x.boxes[i])
            continue
        clusters[best].append(i)
        weight = np.cumsum(x.scores[clusters[best]])[-1]  # one after the other, as the operator
        if weight > 0:
            weighted = x.scores[clusters[best], None] * x.boxes[clusters[best]]
            means[best] = np.cumsum(weighted, 0)[-1] / weight
    for cluster, mean in zip(clusters, means, strict=True):
        score = np.cumsum(x.scores[cluster])[-1] / len(cluster)
        yield float(score * min(models, len(cluster)) / models), ranked.index(cluster[0]), mean


def merged(
    x: Found, method: str, threshold: float, metric: str, per_class: bool, models: int
) -> list[Row]:
    order = sorted(range(len(x.boxes)), key=lambda i: -x.scores[i])  # stable
    rows = []
    groups = {(x.images[i], x.labels[i] if per_class else 0) for i in order}
    for image, label in groups:
        ranked = [i for i in order if x.images[i] == image and label in (x.labels[i], 0)]
        if method == "wbf":
            results = fused(x, ranked, threshold, metric, models)
        else:
            results = suppressed(x, ranked, method, threshold, metric)
        rows += [(int(image), score, ranked[k], tuple(box.tolist())) for score, k, box in results]
    return sorted(rows, key=lambda row: (row[0], -row[1], order.index(row[2])))


whole = st.integers(0, 24)
side = st.integers(0, 12)
found_box = st.tuples(whole, whole, side, side, st.integers(0, 7), st.integers(1, 2), st.booleans())


@st.composite
def lists(draw: st.DrawFn) -> Found:
    """Boxes on a grid of whole numbers, so that areas are exact, with equal scores among them."""
    rows = np.array(draw(st.lists(found_box, max_size=30)), float).reshape(-1, 7)
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
    return Found(boxes, rows[:, 4] / 8, rows[:, 5].astype(int), rows[:, 6].astype(int))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["nms", "greedy_nmm", "nmm", "wbf"])
@given(
    x=lists(),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    metric=st.sampled_from(["iou", "ios"]),
    per_class=st.booleans(),
    models=st.integers(1, 3),
)
def test_the_rows_of_the_definition(
    backend: str,
    method: str,
    x: Found,
    threshold: float,
    metric: str,
    per_class: bool,
    models: int,
) -> None:
    arrays = (torch.from_numpy(array) for array in x[:3])
    with ops.backend(backend):
        got = ops.merge_boxes(
            *arrays,
            method=method,
            threshold=threshold,
            metric=metric,
            per_class=per_class,
            images=torch.from_numpy(x.images),
            models=models,
        )
    want = merged(x, method, threshold, metric, per_class, models)
    assert got.images.tolist() == [row[0] for row in want]
    assert got.scores.tolist() == [row[1] for row in want]
    assert got.index.tolist() == [row[2] for row in want]
    assert got.boxes.tolist() == [list(row[3]) for row in want]
    assert got.labels.tolist() == x.labels[got.index.numpy()].tolist()
