"""AP by size, kinds of false positives and confusion matrix, against tables by hand."""

import numpy as np
import pytest
from test_metrics import scenes

from mdssd.metrics import (
    confusion_matrix,
    false_positives,
    similar_labels,
    size_ap,
    voc_ap,
)
from mdssd.metrics.errors import KINDS, VOC_GROUPS


def image(boxes, labels=None, scores=None, **flags):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    result = {"boxes": boxes, "labels": [1] * len(boxes) if labels is None else labels, **flags}
    return result if scores is None else {**result, "scores": scores}


def square(k, side=9):
    """Box number k of a row of boxes that do not touch; its area is (side + 1)^2."""
    return [50 * k, 0, 50 * k + side, side]


def falling(count):
    return np.linspace(0.9, 0.1, count)


FAR = [0, 500, 9, 509]

# --- sizes ---------------------------------------------------------------------------------------

# Ten objects with sides of 10 to 19 pixels, so 0: XS; 1, 2: S; 3-6: M; 7, 8: L; 9: XL.
#   detection       3(M)  far  0(XS)  9(XL)  9 again  1(S)  far  4(M)
#   false so far     0     1     1      1       2      2     3    3
# AP, over steps of recall, ignoring hits of other sizes:
#   XS (1 object)   1/2           S (2)  1/2 * 1/3        M (4)  1/4 * 1 + 1/4 * 2/5
#   L (2)           0             XL (1) 1/2
# Normalised to N = 4, a hit has the weight 4 / (objects of the size) in the precision:
#   XS   4 / (4 + 1)              S   1/2 * 2 / (2 + 2)   M   as above
#   XL   4 / (4 + 1)
# All ten: a hit has the weight 0.4. The precision at hits is 1, .8/1.8, 1.2/2.2, 1.6/3.6, 2/5;
# the envelope raises the second to the third.
TEN = [square(k, 9 + k) for k in range(10)]
HITS = [TEN[3], FAR, TEN[0], TEN[9], TEN[9], TEN[1], FAR, TEN[4]]


@pytest.fixture
def sizes_table():
    return [image(HITS, scores=falling(8))], [image(TEN)]


def test_sizes_table(sizes_table):
    result = size_ap(*sizes_table, 2, normal_objects=4)
    assert result.objects.tolist() == [[1, 2, 4, 2, 1]]
    assert result.limits.tolist() == [[10**2, 12**2, 16**2, 18**2]]
    np.testing.assert_allclose(result.ap, [[1 / 2, 1 / 6, 7 / 20, 0, 1 / 2]], atol=1e-12)
    np.testing.assert_allclose(result.normalized_ap, [[4 / 5, 1 / 4, 7 / 20, 0, 4 / 5]], atol=1e-12)
    assert result.overall[0] == pytest.approx((1 + 2 * 6 / 11 + 4 / 9 + 2 / 5) / 10, abs=1e-12)


def test_n_is_15_percent_of_the_images(sizes_table):
    found, truth = sizes_table
    nothing = image([]), image([], scores=[])
    result = size_ap(found + [nothing[1]] * 19, truth + [nothing[0]] * 19, 2)
    assert result.normal_objects == pytest.approx(3.0)
    assert result.normalized_ap[0, 0] == pytest.approx(3 / (3 + 1))


def test_normalised_to_its_own_number_is_the_ap(sizes_table):
    result = size_ap(*sizes_table, 2, normal_objects=10)
    assert result.overall[0] == pytest.approx(voc_ap(*sizes_table, 2, metric="voc12").ap[0])


@pytest.mark.parametrize(
    ("objects", "counts"),
    [
        (0, [0, 0, 0, 0, 0]),
        (1, [0, 0, 1, 0, 0]),
        (2, [0, 1, 0, 1, 0]),
        (3, [0, 1, 1, 1, 0]),
        (4, [0, 1, 2, 1, 0]),
        (5, [1, 1, 2, 1, 0]),
        (6, [1, 1, 2, 1, 1]),
        (20, [2, 4, 8, 4, 2]),
        (25, [3, 5, 10, 5, 2]),
    ],
)
def test_sizes_of_few_objects(objects, counts):
    boxes = [square(k, 9 + k) for k in range(objects)]
    result = size_ap([image(boxes, scores=np.full(objects, 0.5))], [image(boxes)], 2)
    assert result.objects.tolist() == [counts]
    np.testing.assert_array_equal(result.ap[0], [1.0 if n else np.nan for n in counts])
    np.testing.assert_array_equal(np.isnan(result.limits[0]), [objects == 0] * 4)


def test_equal_areas_are_of_one_size():
    # Ranks 1, 3, 7, 9 of 100 100 100 | 144 x 6 | 400: limits 100, 100, 144, 144.
    boxes = [square(k, side) for k, side in enumerate([9] * 3 + [11] * 6 + [19])]
    result = size_ap([image([], scores=[])], [image(boxes)], 2)
    assert result.objects.tolist() == [[3, 0, 6, 0, 1]]
    assert result.limits.tolist() == [[100, 100, 144, 144]]


def test_sizes_go_by_class_and_leave_difficult_ones_out():
    # The ten objects of class 2 are all found, those of class 1 not at all.
    truth = image(TEN + TEN, [1] * 10 + [2] * 10)
    result = size_ap([image(TEN, [2] * 10, falling(10))], [truth], 4)
    assert result.objects.tolist() == [[1, 2, 4, 2, 1]] * 2 + [[0] * 5]
    assert result.mean_ap.tolist() == [0.5] * 5
    assert np.isnan(result.ap[2]).all() and np.isnan(result.overall[2])
    # Without the largest there are nine: ranks 1, 3, 6, 8.
    flags = [False] * 9 + [True]
    for flag in ("difficult", "crowd"):
        hard = size_ap([image(TEN, scores=falling(10))], [image(TEN, **{flag: flags})], 2)
        assert hard.objects.tolist() == [[1, 2, 3, 2, 1]]
        assert hard.ap.tolist() == [[1.0] * 5]


def test_sizes_of_nothing():
    for found, truth in (([], []), ([image([], scores=[])], [image([])])):
        result = size_ap(found, truth, 3)
        assert result.objects.sum() == 0 and np.isnan(result.ap).all()
        assert np.isnan(result.mean_normalized_ap).all()


def plain_sizes(found, truth, label, normal):
    """(normalised AP, AP) of each size, one detection at a time, as Hoiem's tool computes them:
    the mean of the interpolated precisions at true detections times the final recall.
    """
    objects = [
        (i, j)
        for i, t in enumerate(truth)
        for j in range(len(t["boxes"]))
        if t["labels"][j] == label and not t["difficult"][j]
    ]

    def area(i, j):
        x1, y1, x2, y2 = truth[i]["boxes"][j]
        return (x2 - x1 + 1) * (y2 - y1 + 1)

    areas = sorted(area(*o) for o in objects)
    limits = [areas[int(len(areas) * part + 0.5 + 1e-9) - 1] for part in (0.1, 0.3, 0.7, 0.9)]
    size = {o: sum(area(*o) > limit for limit in limits) for o in objects}

    rows = [
        (score, i, box)
        for i, f in enumerate(found)
        for box, score, k in zip(f["boxes"], f["scores"], f["labels"], strict=True)
        if k == label
    ]
    rows.sort(key=lambda row: -row[0])
    taken, verdicts = set(), []
    for _, i, box in rows:
        overlaps = []
        for j, gt in enumerate(truth[i]["boxes"]):
            w = max(min(box[2], gt[2]) - max(box[0], gt[0]) + 1, 0)
            h = max(min(box[3], gt[3]) - max(box[1], gt[1]) + 1, 0)
            both = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, gt))
            iou = w * h / (both - w * h)
            overlaps.append(iou if truth[i]["labels"][j] == label else -1)
        j = int(np.argmax(overlaps)) if overlaps else -1
        if j < 0 or overlaps[j] < 0.5:
            verdicts.append("false")
        elif truth[i]["difficult"][j]:
            verdicts.append("ignored")
        else:
            verdicts.append("false" if (i, j) in taken else size[i, j])
            taken.add((i, j))

    result = []
    for s in range(5):
        count = sum(value == s for value in size.values())
        pair = []
        for weight in (normal / count, 1):
            hits = misses = 0
            precision = []
            for verdict in verdicts:
                hits += verdict == s
                misses += verdict == "false"
                if verdict in (s, "false"):
                    precision.append((weight * hits / (weight * hits + misses), verdict == s))
            best, at_hits = 0.0, []
            for value, hit in reversed(precision):
                best = max(best, value)
                at_hits += [best] if hit else []
            pair.append(np.mean(at_hits) * hits / count if at_hits else 0.0)
        result.append(pair)
    return np.array(result)


@pytest.mark.parametrize("seed", range(3))
def test_sizes_as_computed_one_detection_at_a_time(seed):
    found, truth = scenes(seed, images=20)
    result = size_ap(found, truth, 4, normal_objects=3)
    for label in (1, 2, 3):
        expected = plain_sizes(found, truth, label, 3)
        np.testing.assert_allclose(result.normalized_ap[label - 1], expected[:, 0], atol=1e-12)
        np.testing.assert_allclose(result.ap[label - 1], expected[:, 1], atol=1e-12)
    assert len(np.unique(result.ap)) > 10


# --- false positives -----------------------------------------------------------------------------


# Classes 1 and 2 are similar, 3 is not. Widths of 10 pixels; a box moved by d shares 10 - d of
# them, IoU (10 - d) / (10 + d).
#   1 right                              true
#   2 moved by 4: 6/14                   localisation
#   3 the object of 1 again              localisation
#   4 on an object of class 2            similar
#   5 on an object of class 3            other
#   6 nowhere                            background
#   7 moved by 9 from class 1: 1/19      background
#   8 on a difficult object              ignored
#   9 moved by 8 from class 2: 2/18      similar (0.11)
#  10 on objects of classes 2 and 3      similar
def moved(k, by):
    x1, y1, x2, y2 = square(k)
    return [x1 + by, y1, x2 + by, y2]


OBJECTS = [square(0), square(1), square(2), square(3), square(4), square(5), square(6), square(6)]
OBJECT_LABELS = [1, 1, 2, 3, 1, 1, 2, 3]
DIFFICULT = [False] * 5 + [True, False, False]
FOUND = [
    square(0), moved(1, 4), square(0), square(2), square(3), FAR, moved(4, 9), square(5),
    moved(2, 8), square(6),
]  # fmt: skip


def breakdown(**options):
    found = image(FOUND, scores=falling(10))
    truth = image(OBJECTS, OBJECT_LABELS, difficult=DIFFICULT)
    return false_positives([found], [truth], 4, **options)


def test_false_positives_table():
    result = breakdown(similar=[(1, 2)])
    names = ["true" if kind < 0 else KINDS[kind] for kind in result.kinds[0]]
    assert names == [
        "true", "localisation", "localisation", "similar", "other", "background", "background",
        "similar", "similar",
    ]  # fmt: skip
    assert result.rows[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert result.objects.tolist() == [3, 2, 2]
    assert result.counts(100)[0].tolist() == [1, 2, 3, 1, 2]
    assert result.counts()[0].tolist() == [1, 2, 0, 0, 0]  # the first 3, as there are 3 objects
    assert result.counts(0).sum() == 0 and result.counts(100)[1:].sum() == 0


def test_without_groups_nothing_is_similar():
    assert breakdown().counts(100)[0].tolist() == [1, 2, 0, 4, 2]
    assert breakdown(similar=[(1, 2, 3)]).counts(100)[0].tolist() == [1, 2, 4, 0, 2]
    assert breakdown(similar=[(2, 3), (1,), ()]).counts(100)[0].tolist() == [1, 2, 0, 4, 2]


@pytest.mark.parametrize("seed", range(3))
def test_counts_agree_with_voc_ap(seed):
    found, truth = scenes(seed)
    counts = false_positives(found, truth, 4, similar=[(1, 2)]).counts(1000)
    result = voc_ap(found, truth, 4)
    for k in range(3):
        assert counts[k, 0] == result.true_positives[k][-1]
        assert counts[k, 1:].sum() == result.false_positives[k][-1]
    assert counts[:, :2].all() and counts[:, 4].all() and counts[2, 2] == 0


def test_false_positives_of_nothing():
    assert false_positives([], [], 3).counts().tolist() == [[0] * 5] * 2
    lonely = false_positives([image([FAR], scores=[0.5])], [image([])], 2)
    assert lonely.counts(1).tolist() == [[0, 0, 0, 0, 1]] and lonely.counts().sum() == 0


def test_groups_by_name():
    voc = sorted({name for group in VOC_GROUPS for name in group} | {"bottle"})
    groups = [[voc[label - 1] for label in group] for group in similar_labels(voc)]
    assert groups == [list(group) for group in VOC_GROUPS]
    assert similar_labels(["car", "bus"]) == [[2, 1]]
    assert similar_labels(["car", "minibus", "bus"]) == []
    assert similar_labels(["car", "minibus", "bus"], [["bus", "car"]]) == [[3, 1]]
    assert similar_labels(["car", "bus"], []) == []
    with pytest.raises(ValueError, match="'van' is not among the classes car, bus"):
        similar_labels(["car", "bus"], [["car", "van"]])


# --- confusion -----------------------------------------------------------------------------------


def test_confusion_table():
    # 0, 1: class 1. 2, 3: class 2. 4: class 2, difficult. 5: class 1, a crowd.
    truth = image(
        [square(k) for k in range(6)],
        [1, 1, 2, 2, 2, 1],
        difficult=[False] * 4 + [True, False],
        crowd=[False] * 5 + [True],
    )
    found = image(
        [
            square(0),
            square(0),
            square(1),
            square(2),
            square(4),
            square(5),
            square(4),
            FAR,
            square(3),
        ],
        [1, 1, 2, 2, 2, 1, 1, 2, 2],
        [0.9, 0.8, 0.7, 0.9, 0.9, 0.9, 0.9, 0.5, 0.49],
    )
    # Two detections have no object: the second on 0, and class 1 on the difficult object of class
    # 2. Object 1 is detected as class 2. Object 3 is missed: its detection has too low a score.
    expected = [[0, 2, 1], [0, 1, 1], [1, 0, 1]]
    assert confusion_matrix([found], [truth], 3).tolist() == expected
    twice = confusion_matrix([found] * 2, [truth] * 2, 3)
    assert twice.tolist() == (2 * np.array(expected)).tolist()
    weak = confusion_matrix([found], [truth], 3, score_threshold=0.4)
    assert weak.tolist() == [[0, 2, 1], [0, 1, 1], [0, 0, 2]]


def test_the_right_class_comes_before_a_better_score():
    # The wrong class has the higher score, but the right class is paired with the object.
    found = image([square(0), square(0)], [2, 1], [0.9, 0.6])
    assert confusion_matrix([found], [image([square(0)])], 3).tolist() == [
        [0, 0, 1],
        [0, 1, 0],
        [0, 0, 0],
    ]


def test_confusion_takes_the_nearest_that_is_free():
    # Objects 0-99 and 20-119 in y. The second detection is between them and nearer to the first,
    # which is already paired.
    truth = image([[0, 0, 99, 99], [0, 20, 99, 119]])
    found = image([[0, 0, 99, 99], [0, 8, 99, 107]], scores=[0.9, 0.8])
    assert confusion_matrix([found], [truth], 2).tolist() == [[0, 0], [0, 2]]
    assert confusion_matrix([found], [truth], 2, iou_threshold=0.9).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_counts_every_object_and_detection_once(seed):
    found, truth = scenes(seed)
    matrix = confusion_matrix(found, truth, 4, score_threshold=0.3)
    labels = np.concatenate([t["labels"][~t["difficult"]] for t in truth])
    assert matrix[1:].sum(axis=1).tolist() == np.bincount(labels, minlength=4)[1:].tolist()
    shown = np.concatenate([f["labels"][f["scores"] >= 0.3] for f in found])
    left_out = np.bincount(shown, minlength=4)[1:] - matrix[:, 1:].sum(axis=0)
    assert (left_out >= 0).all() and left_out.sum() > 0
    none_difficult = [{**t, "difficult": np.zeros(len(t["labels"]), bool)} for t in truth]
    matrix = confusion_matrix(found, none_difficult, 4, score_threshold=0.3)
    assert matrix[:, 1:].sum(axis=0).tolist() == np.bincount(shown, minlength=4)[1:].tolist()


def test_confusion_of_nothing():
    assert confusion_matrix([], [], 3).tolist() == [[0] * 3] * 3
    assert confusion_matrix([image([FAR], scores=[1])], [image([])], 2).tolist() == [[0, 1], [0, 0]]
    assert confusion_matrix([image([], scores=[])], [image([FAR])], 2).tolist() == [[0, 0], [1, 0]]


# --- wrong input ---------------------------------------------------------------------------------

NOTHING = [image([], scores=[])], [image([])]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (size_ap, {"iou_threshold": 0}, "size_ap: iou_threshold: expected 0 < t <= 1, got 0"),
        (size_ap, {"normal_objects": -1}, "size_ap: normal_objects: expected more than 0, got -1"),
        (false_positives, {"iou_threshold": 2}, "false_positives: iou_threshold: expected 0 < t"),
        (false_positives, {"background_iou": 0.6}, r"background_iou: .* \(0.5\), got 0.6"),
        (false_positives, {"similar": [(0, 1)]}, r"similar: expected labels 1 to 2, got \[0, 1\]"),
        (false_positives, {"similar": [(1, 3)]}, r"similar: expected labels 1 to 2, got \[1, 3\]"),
        (confusion_matrix, {"iou_threshold": -1}, "confusion_matrix: iou_threshold: expected 0"),
        (confusion_matrix, {"score_threshold": np.nan}, "score_threshold: expected a number"),
    ],
)
def test_wrong_arguments_are_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(*NOTHING, 3, **options)


@pytest.mark.parametrize("function", [size_ap, false_positives, confusion_matrix])
def test_wrong_detections_are_named(function):
    wrong = image([FAR], [3], [0.5])
    with pytest.raises(ValueError, match=rf"{function.__name__}: detections\[0\]: labels"):
        function([wrong], [image([])], 3)
    with pytest.raises(ValueError, match="top: expected 0 or more, got -1"):
        false_positives(*NOTHING, 3).counts(-1)
