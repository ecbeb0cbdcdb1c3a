"""VOC and COCO average precision: tables by hand, edge cases, and a comparison of the two."""

import builtins
import math

import numpy as np
import pytest

from mdssd.metrics import coco_ap, voc_ap
from mdssd.metrics.boxes import check_images


def image(boxes, labels=None, scores=None, **flags):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    result = {"boxes": boxes, "labels": [1] * len(boxes) if labels is None else labels, **flags}
    return result if scores is None else {**result, "scores": scores}


def square(k, side=9):
    """Box number k of a row of boxes that do not touch."""
    return [20 * k, 0, 20 * k + side, side]


FAR = [500, 500, 509, 509]


def one_class(hits, objects, **options):
    """The result for detections, by falling score, that hit (True) or miss `objects` objects."""
    number = iter(range(len(hits)))
    boxes = [square(next(number)) if hit else FAR for hit in hits]
    scores = np.linspace(0.9, 0.1, len(hits))
    truth = [square(k) for k in range(objects)]
    return voc_ap([image(boxes, scores=scores)], [image(truth)], 2, **options)


# Five objects, detections by falling score: hit, miss, hit, hit, miss, miss, hit.
#   rank       1     2     3     4     5     6     7
#   recall    1/5   1/5   2/5   3/5   3/5   3/5   4/5
#   precision  1    1/2   2/3   3/4   3/5   1/2   4/7
# Best precision at a recall or more: 1 up to 1/5, 3/4 up to 3/5, 4/7 up to 4/5, then 0.
# 11 points: recalls 0, .1, .2 -> 1; .3 .4 .5 .6 -> 3/4; .7 .8 -> 4/7; .9, 1 -> 0.
# All points: 1/5 * 1 + 2/5 * 3/4 + 1/5 * 4/7.
HITS = [True, False, True, True, False, False, True]


@pytest.fixture
def table():
    """The table above. A hit is on the object with its own rank."""
    boxes = [square(k) if hit else FAR for k, hit in enumerate(HITS)]
    truth = [square(k) for k in (0, 2, 3, 6, 9)]
    return [image(boxes, scores=np.linspace(0.9, 0.1, 7))], [image(truth)]


def test_voc07_table(table):
    assert voc_ap(*table, 2).ap[0] == pytest.approx((3 * 1 + 4 * 3 / 4 + 2 * 4 / 7) / 11, abs=1e-12)


def test_voc12_table(table):
    result = voc_ap(*table, 2, metric="voc12")
    assert result.ap[0] == pytest.approx(1 / 5 + 2 / 5 * 3 / 4 + 1 / 5 * 4 / 7, abs=1e-12)


# The worked example of Padilla, Netto, da Silva, "A survey on performance metrics for
# object-detection algorithms" (2020): 24 detections of 15 objects; AP 26.84% over 11 recalls,
# 24.56% over all (both with precisions cut to four places).
PUBLISHED = "RYJAUCMFDBHPEXNTKQVILSGO"
PUBLISHED_HITS = "RJBPEXG"


@pytest.mark.parametrize(("metric", "published"), [("voc07", 0.2684), ("voc12", 0.2456)])
def test_published_example(metric, published):
    boxes = [
        square(PUBLISHED_HITS.index(name)) if name in PUBLISHED_HITS else FAR for name in PUBLISHED
    ]
    truth = image([square(k) for k in range(15)])
    result = voc_ap([image(boxes, scores=np.linspace(0.95, 0.14, 24))], [truth], 2, metric=metric)
    assert result.ap[0] == pytest.approx(published, abs=1e-4)


def test_curve_table(table):
    recall, precision = voc_ap(*table, 2).curve(1)
    np.testing.assert_allclose(recall, [0.2, 0.2, 0.4, 0.6, 0.6, 0.6, 0.8])
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5, 1 / 2, 4 / 7])


def test_recall_of_exactly_three_tenths_reaches_its_point():
    # 3 of 10 found, no miss: precision 1 at recalls 0, .1, .2, .3. In floating point
    # 3 * 0.1 > 3 / 10, which would lose the fourth point.
    assert one_class([True] * 3, 10).ap[0] == pytest.approx(4 / 11, abs=1e-12)


@pytest.mark.parametrize("found", range(11))
def test_eleven_points_without_a_miss(found):
    assert one_class([True] * found, 10).ap[0] == pytest.approx(
        (found + 1) / 11 if found else 0.0, abs=1e-12
    )


@pytest.mark.parametrize("metric", ["voc07", "voc12"])
@pytest.mark.parametrize("objects", [1, 3, 7])
def test_perfect_detections_reach_one(metric, objects):
    assert one_class([True] * objects, objects, metric=metric).ap[0] == pytest.approx(1, abs=1e-12)


def test_second_detection_of_an_object_is_false():
    # hit, the same again (false), hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    found = image([square(0), square(0), square(1)], scores=[0.9, 0.8, 0.7])
    truth = image([square(0), square(1)])
    result = voc_ap([found], [truth], 2)
    assert result.ap[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-12)
    assert result.false_positives[0].tolist() == [0, 1, 1]


def test_the_better_scored_detection_of_an_object_is_the_true_one():
    found = image([square(0), square(0)], scores=[0.3, 0.9])
    assert voc_ap([found], [image([square(0)])], 2).true_positives[0].tolist() == [1, 1]
    # The detection with the higher score is true, although its IoU is only 8/10.
    found = image([[0, 0, 9, 7], square(0)], scores=[0.9, 0.3])
    assert voc_ap([found], [image([square(0)])], 2).true_positives[0].tolist() == [1, 1]


def test_an_object_that_is_taken_is_not_exchanged_for_another():
    # Both detections overlap object 0 most, although the second also overlaps object 1 by > 0.5:
    # VOC considers only the nearest object, so the second detection is false.
    truth = image([[0, 0, 99, 99], [0, 20, 99, 119]])
    found = image([[0, 0, 99, 99], [0, 5, 99, 104]], scores=[0.9, 0.8])
    assert voc_ap([found], [truth], 2).false_positives[0].tolist() == [0, 1]


def test_difficult_objects_are_neither_found_nor_missed():
    truth = image([square(0), square(1)], difficult=[False, True])
    found = image([square(1), square(1), square(0), FAR], scores=[0.9, 0.8, 0.7, 0.6])
    result = voc_ap([found], [truth], 2)
    assert result.objects[0] == 1 and result.difficult[0] == 1
    assert result.true_positives[0].tolist() == [1, 1]
    assert result.false_positives[0].tolist() == [0, 1]
    assert result.ap[0] == pytest.approx(1.0)


def test_crowds_count_as_difficult():
    truth = image([square(0), square(1)], crowd=[False, True])
    result = voc_ap([image([square(1), square(0)], scores=[0.9, 0.8])], [truth], 2)
    assert result.ap[0] == pytest.approx(1.0) and result.difficult[0] == 1


def test_class_without_objects_is_left_out_of_the_mean():
    found = image([square(0), square(1)], labels=[1, 2], scores=[0.9, 0.8])
    truth = image([square(0), square(3)], labels=[1, 3], difficult=[False, True])
    result = voc_ap([found], [truth], 4)
    assert result.ap[0] == pytest.approx(1.0)
    assert math.isnan(result.ap[1]) and math.isnan(result.ap[2])
    assert result.mean_ap == pytest.approx(1.0)


def test_label_must_agree():
    found = image([square(0)], labels=[2], scores=[0.9])
    result = voc_ap([found], [image([square(0)])], 3)
    assert result.ap[0] == 0.0 and result.false_positives[1].tolist() == [1]


def test_no_images_and_no_boxes():
    assert math.isnan(voc_ap([], [], 3).mean_ap)
    assert math.isnan(voc_ap([image([], scores=[])], [image([])], 3).mean_ap)
    for metric in ("voc07", "voc12"):
        assert voc_ap([image([], scores=[])], [image([FAR])], 2, metric=metric).mean_ap == 0.0
        assert voc_ap([image([FAR], scores=[1])], [image([])], 2, metric=metric).detections[0] == 1


def test_widths_count_both_edges():
    # Columns 0-9 and 0-4: with + 1 they share 5 of 10 columns, exactly 0.5; without, 4 of 9.
    found, truth = image([[0, 0, 4, 9]], scores=[0.9]), image([[0, 0, 9, 9]])
    assert voc_ap([found], [truth], 2).ap[0] == pytest.approx(1.0)
    assert voc_ap([found], [truth], 2, plus_one=False).ap[0] == 0.0
    assert voc_ap([found], [truth], 2, iou_threshold=0.51).ap[0] == 0.0


def test_ties_in_score_keep_the_order_given():
    truth = [image([square(0)]), image([square(0)])]
    first = voc_ap([image([FAR], scores=[0.5]), image([square(0)], scores=[0.5])], truth, 2)
    assert first.true_positives[0].tolist() == [0, 1]
    second = voc_ap([image([square(0)], scores=[0.5]), image([FAR], scores=[0.5])], truth, 2)
    assert second.true_positives[0].tolist() == [1, 1]


def plain_voc(detections, truths, label, threshold):
    """The development kit's loops, one detection at a time."""
    rows = [
        (score, i, box)
        for i, found in enumerate(detections)
        for box, score, k in zip(found["boxes"], found["scores"], found["labels"], strict=True)
        if k == label
    ]
    rows.sort(key=lambda row: -row[0])
    taken, verdicts = set(), []
    for _, i, box in rows:
        best, which = -1.0, None
        for j, gt in enumerate(truths[i]["boxes"]):
            if truths[i]["labels"][j] != label:
                continue
            w = min(box[2], gt[2]) - max(box[0], gt[0]) + 1
            h = min(box[3], gt[3]) - max(box[1], gt[1]) + 1
            if w <= 0 or h <= 0:
                continue
            sizes = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, gt)]
            iou = w * h / (sum(sizes) - w * h)
            if iou > best:
                best, which = iou, j
        if best < threshold:
            verdicts.append(False)
        elif not truths[i]["difficult"][which]:
            verdicts.append((i, which) not in taken)
            taken.add((i, which))
    return verdicts


def scenes(seed, images=12, num_classes=4, touching=True, spread=2.5):
    """Objects of three classes, some difficult; detections are shifted, doubled or invented."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(images):
        count = int(rng.integers(0, 14))
        cells = rng.permutation(25)[:count]
        corner = np.stack([cells % 5, cells // 5], 1) * 60.0
        if touching:
            corner = rng.uniform(0, 150, (count, 2))
        size = rng.uniform(12, 50, (count, 2))
        boxes = np.round(np.hstack([corner, corner + size]))
        labels = rng.integers(1, num_classes, count)
        truth.append(image(boxes, labels, difficult=rng.random(count) < 0.15))
        copies = np.repeat(np.arange(count), rng.integers(0, 4, count))
        extra = rng.uniform(0, 250, (6, 2))
        seen = np.vstack(
            [
                boxes[copies] + rng.normal(0, spread, (len(copies), 4)),
                np.hstack([extra, extra + rng.uniform(12, 50, (6, 2))]),
            ]
        )
        # Scores have two decimals, so that there are ties within and between images.
        scores = np.round(rng.random(len(seen)), 2)
        kinds = np.concatenate([labels[copies], rng.integers(1, num_classes, 6)])
        found.append(image(seen, kinds, scores))
    return found, truth


@pytest.mark.parametrize("seed", range(5))
def test_same_verdicts_as_one_detection_at_a_time(seed):
    found, truth = scenes(seed)
    result = voc_ap(found, truth, 4)
    for label in (1, 2, 3):
        verdicts = plain_voc(found, truth, label, 0.5)
        assert result.true_positives[label - 1].tolist() == np.cumsum(verdicts).tolist()
        assert result.false_positives[label - 1][-1] == len(verdicts) - sum(verdicts)


def interpolated(recall, precision):
    """COCO's AP of a curve: the mean over recalls 0, 0.01 ... 1 of the best precision there."""
    points = np.linspace(0, 1, 101)
    return np.mean([precision[recall >= p].max(initial=0.0) for p in points])


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_pycocotools_at_iou_50(seed):
    """Compute pycocotools' AP50 from the recall and precision of `voc_ap`.

    VOC and COCO differ in four ways, none of which applies here: the interpolation (pycocotools'
    101 recalls are applied to VOC's curve), the + 1 (off), difficult objects (none), and the
    object that a detection is matched with (VOC: the nearest; COCO: the nearest free one), which
    is the same because the objects of an image are far apart. Doubled detections, ties, misses
    and several classes remain.
    """
    found, truth = scenes(seed, images=20, touching=False)
    for one in truth:
        one["difficult"] = np.zeros(len(one["boxes"]), bool)
    ours = voc_ap(found, truth, 4, plus_one=False)
    theirs = coco_ap(found, truth, 4)
    for label in (1, 2, 3):
        assert interpolated(*ours.curve(label)) == pytest.approx(theirs.ap50[label - 1], abs=1e-9)
    assert 0.2 < theirs.figures["AP50"] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_difficult_objects_mean_the_same_to_coco(seed):
    # No object is detected twice here: VOC ignores a second detection of a difficult object,
    # COCO counts it as false.
    found, truth = scenes(seed, images=20, touching=False, spread=1.5)
    for seen, true in zip(found, truth, strict=True):
        count = len(true["boxes"])
        seen["boxes"] = np.vstack([true["boxes"] + 1.0, seen["boxes"][-6:]])
        seen["labels"] = np.concatenate([true["labels"], seen["labels"][-6:]])
        seen["scores"] = np.round(np.random.default_rng(seed).random(count + 6), 2)
    ours, theirs = voc_ap(found, truth, 4, plus_one=False), coco_ap(found, truth, 4)
    assert ours.difficult.sum() > 5
    for label in (1, 2, 3):
        assert interpolated(*ours.curve(label)) == pytest.approx(theirs.ap50[label - 1], abs=1e-9)


def test_coco_figures_by_hand():
    # Three boxes of IoU 1, 0.8 and 0.6 with their objects of 20, 50 and 100 pixels. AP counts
    # the thresholds .5 .55 ... .95 reached: all 10; 7 (0.5-0.8); 3 (0.5-0.6).
    truth = image([[0, 0, 20, 20], [100, 0, 150, 50], [200, 0, 300, 100]], [1, 2, 3])
    found = image(
        [[0, 0, 20, 20], [100, 0, 150, 40], [200, 0, 300, 60]], [1, 2, 3], [0.9, 0.8, 0.7]
    )
    result = coco_ap([found], [truth], 4)
    np.testing.assert_allclose(result.ap, [1.0, 0.7, 0.3], atol=1e-9)
    np.testing.assert_allclose(result.ap50, [1.0, 1.0, 1.0], atol=1e-9)
    figures = result.figures
    assert figures["AP"] == pytest.approx(2 / 3) and figures["AP75"] == pytest.approx(2 / 3)
    assert [figures[f"AP_{size}"] for size in ("small", "medium", "large")] == pytest.approx(
        [1.0, 0.7, 0.3]
    )
    assert figures["AR1"] == pytest.approx(2 / 3)
    assert len(figures) == 12


def test_coco_crowds_are_not_counted():
    # Two detections inside a crowd are ignored; inside a plain object both would be false.
    found = image([[2, 2, 12, 12], [30, 30, 40, 40], [200, 0, 220, 20]], scores=[0.9, 0.8, 0.7])
    boxes = [[0, 0, 100, 100], [200, 0, 220, 20]]
    assert coco_ap([found], [image(boxes, crowd=[True, False])], 2).figures["AP"] == pytest.approx(
        1.0
    )
    assert coco_ap([found], [image(boxes)], 2).figures["AP"] < 0.2


def test_coco_takes_the_area_given():
    truth = image([[0, 0, 40, 40]], area=[900.0])
    result = coco_ap([image([[0, 0, 40, 40]], scores=[0.9])], [truth], 2)
    assert result.figures["AP_small"] == pytest.approx(1.0)
    assert math.isnan(result.figures["AP_medium"])


def test_coco_keeps_a_hundred_detections_per_image_and_class():
    boxes = [square(k) for k in range(101)]
    found = image([FAR] * 100 + [boxes[0]], scores=np.linspace(1, 0.1, 101))
    assert coco_ap([found], [image(boxes[:1])], 2).figures["AR100"] == 0.0
    found = image([FAR] * 99 + [boxes[0]], scores=np.linspace(1, 0.1, 100))
    assert coco_ap([found], [image(boxes[:1])], 2).figures["AR100"] == pytest.approx(1.0)


def test_coco_without_images_objects_or_detections(capsys):
    for found, truth in (([], []), ([image([], scores=[])], [image([])])):
        result = coco_ap(found, truth, 3)
        assert all(math.isnan(value) for value in result.figures.values())
        assert np.isnan(result.ap).all() and result.ap.shape == (2,)
    assert coco_ap([image([], scores=[])], [image([FAR])], 3).figures["AP"] == 0.0
    assert capsys.readouterr().out == ""


def test_coco_says_what_is_missing(monkeypatch):
    plain = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return plain(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        coco_ap([], [], 2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (image([[0, 0, 1, 1]], scores=[float("nan")]), r"detections\[0\]: scores: .*NaN"),
        (image([[0, 0, 1, 1]], scores=[0.1, 0.2]), r"detections\[0\]: scores: expected \[1\]"),
        (image([[0, 0, 1, 1]], labels=[3], scores=[0.1]), "labels: expected 1 to 2, got 3 to 3"),
        (image([[0, 0, 1, 1]], labels=[0], scores=[0.1]), "labels: expected 1 to 2, got 0 to 0"),
        (image([[0, 0, float("inf"), 1]], scores=[0.1]), "boxes: expected finite"),
        ({"boxes": np.zeros((2, 5)), "labels": [1, 1], "scores": [1, 1]}, r"\[N, 4\] xyxy"),
    ],
)
def test_bad_detections_are_named(found, message):
    with pytest.raises(ValueError, match=message):
        voc_ap([found], [image([])], 3)
    with pytest.raises(ValueError, match=message):
        coco_ap([found], [image([])], 3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="metric: expected 'voc07' or 'voc12'"):
        voc_ap([], [], 3, metric="coco")
    with pytest.raises(ValueError, match="iou_threshold"):
        voc_ap([], [], 3, iou_threshold=0.0)
    with pytest.raises(ValueError, match="num_classes"):
        voc_ap([], [], 1)
    with pytest.raises(ValueError, match=r"one entry per image of ground_truth \(1\), got 0"):
        voc_ap([], [image([])], 3)


def test_tensors_are_taken_and_nothing_is_changed():
    import torch

    boxes = torch.tensor([[0.0, 0, 9, 9]])
    found = {"boxes": boxes, "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    assert voc_ap([found], [image([square(0)])], 2).ap[0] == pytest.approx(1.0)
    checked = check_images("test", [found], [image([square(0)])], 2)[0]
    assert checked.gt_area.tolist() == [81.0] and boxes.tolist() == [[0, 0, 9, 9]]
