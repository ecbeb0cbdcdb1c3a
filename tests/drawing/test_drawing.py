"""In pictures of detections, each part is drawn in its place and can be read."""

import numpy as np
import pytest
import torch

from mdssd.drawing import class_color, draw_detections
from mdssd.drawing import detections as draw
from mdssd.drawing.tags import shared_area

CLASSES = ["car", "bus", "éléphant"]


def grey(height=300, width=300):
    return np.full((height, width, 3), 128, np.uint8)


def count(image, color):
    return int((image == np.array(color, np.uint8)).all(axis=2).sum())


def placed(monkeypatch):
    """Return a list that receives the tags of the next picture."""
    tags = []
    plain = draw._tag
    monkeypatch.setattr(
        draw, "_tag", lambda pen, tag, *rest: (tags.append(tag), plain(pen, tag, *rest))
    )
    return tags


def scattered(number, size, seed=0, height=300, width=300):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 1, (number, 2)) * [width - size, height - size]
    boxes = np.hstack([corner, corner + size])
    return boxes, rng.integers(1, 4, number), rng.random(number)


def test_the_outline_lies_on_the_box():
    picture = draw_detections(grey(1000, 1200), [[300, 400, 500, 700]], [1], [0.5], CLASSES)
    color = class_color(1)
    for y, x in ((550, 300), (550, 499), (400, 450), (699, 450)):
        assert tuple(picture[y, x]) == color
    for y, x in ((550, 400), (550, 290), (550, 510), (710, 450)):
        assert tuple(picture[y, x]) == (128, 128, 128)
    # The line has dark edges, so it is visible on any background.
    assert tuple(picture[550, 299]) == (0, 0, 0) and tuple(picture[550, 500]) == (0, 0, 0)
    assert tuple(picture[550, 303]) == (0, 0, 0)


def test_small_images_are_enlarged_and_boxes_with_them():
    picture = draw_detections(grey(), [[100, 100, 200, 200]], [2], [0.5], CLASSES, legend=False)
    assert picture.shape == (900, 900, 3)
    assert tuple(picture[450, 300]) == class_color(2)
    assert tuple(picture[599, 450]) == class_color(2)
    assert draw_detections(grey(), [], [], [], CLASSES, min_side=1, legend=False).shape == (
        300,
        300,
        3,
    )
    assert draw_detections(grey(1000, 950), [], [], [], CLASSES, legend=False).shape == (
        1000,
        950,
        3,
    )
    assert draw_detections(grey(10, 2000), [], [], [], CLASSES, legend=False).shape == (20, 4096, 3)


def test_the_image_given_is_left_alone():
    for size in (300, 1000):
        image = grey(size, size)
        draw_detections(image, [[10, 10, 90, 90]], [1], [0.9], CLASSES, gt=[[10, 10, 90, 90]])
        assert (image == 128).all()


def test_tags_name_class_and_score(monkeypatch):
    tags = placed(monkeypatch)
    boxes = [[20, 100, 60, 140], [120, 100, 160, 140], [220, 100, 260, 140]]
    draw_detections(grey(), boxes, [1, 3, 2], [0.874, 0.5, 0.999], CLASSES)
    assert [tag.text for tag in tags] == ["bus 1.00", "car 0.87", "éléphant 0.50"]


def test_a_name_with_control_characters_is_drawn_with_escapes(monkeypatch):
    tags = placed(monkeypatch)
    draw_detections(grey(), [[100, 100, 200, 200]], [1], [0.5], ["a\nb\x85"])
    assert [tag.text for tag in tags] == ["a\\nb\\x85 0.50"]


def test_a_tag_lies_above_its_box_and_below_at_the_upper_edge(monkeypatch):
    tags = placed(monkeypatch)
    draw_detections(
        grey(900, 900), [[100, 300, 200, 400], [500, 0, 600, 90]], [1, 1], [0.9, 0.8], CLASSES
    )
    above, below = tags
    assert above.y2 <= 300 and above.y2 > 290 and above.x1 == 99
    assert below.y1 >= 90 and below.y1 < 100


@pytest.mark.parametrize("seed", range(4))
def test_tags_never_overlap_nor_leave_the_picture(monkeypatch, seed):
    tags = placed(monkeypatch)
    draw_detections(grey(), *scattered(120, 20, seed), CLASSES)
    assert len(tags) > 60
    for k, a in enumerate(tags):
        assert 0 <= a.x1 < a.x2 <= 900 and 0 <= a.y1 < a.y2 <= 900
        for b in tags[:k]:
            assert a.x2 <= b.x1 or b.x2 <= a.x1 or a.y2 <= b.y1 or b.y2 <= a.y1


def test_tags_hide_little_of_other_objects(monkeypatch):
    tags = placed(monkeypatch)
    boxes, labels, scores = scattered(100, 20, 3)
    draw_detections(grey(), boxes, labels, scores, CLASSES)
    order = np.argsort(-scores, kind="stable")
    texts = {f"{CLASSES[labels[k] - 1]} {scores[k]:.2f}": k for k in order}
    for tag in tags:
        own = texts.get(tag.text)
        if own is None:
            continue
        shared = shared_area(
            np.array([tag.x1, tag.y1, tag.x2, tag.y2]), np.delete(boxes * 3, own, 0)
        )
        assert shared.max() <= 0.25 * 60 * 60 + 1e-6


def test_a_few_small_objects_all_get_a_full_tag(monkeypatch):
    tags = placed(monkeypatch)
    grid = [[x, y, x + 24, y + 24] for x in range(10, 290, 45) for y in range(10, 290, 45)]
    draw_detections(grey(), grid, [1] * len(grid), [0.87] * len(grid), CLASSES)
    assert [tag.text for tag in tags] == ["car 0.87"] * len(grid)


def test_letters_are_large_enough_and_stand_out():
    picture = draw_detections(grey(), [[100, 100, 200, 200]], [1], [0.88], CLASSES, legend=False)
    rows, columns = np.nonzero((picture[:300] == class_color(1)).all(axis=2))
    tag = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert tag.shape[0] >= 16
    ink = (tag.astype(int).sum(axis=2) < 100).any(axis=1)
    assert ink.sum() >= 10
    for label in range(1, 60):
        paper = np.array(class_color(label)) / 255
        light = (paper**2.2) @ [0.2126, 0.7152, 0.0722]
        ink_light = 0.0 if draw._ink(class_color(label)) == (0, 0, 0) else 1.0
        contrast = (max(light, ink_light) + 0.05) / (min(light, ink_light) + 0.05)
        assert contrast >= 4.5  # the least contrast of text in WCAG 2


def test_colours_of_classes_differ():
    colors = np.array([class_color(k) for k in range(1, 31)], np.int64)
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(30, dtype=np.int64)
    assert apart[:10, :10].min() >= 100
    assert apart.min() >= 20


@pytest.mark.parametrize("light", [0, 128, 250])
@pytest.mark.parametrize("scale", [1, 3])
def test_ground_truth_is_dashed_white_with_a_dark_edge(light, scale):
    image = np.full((300, 300, 3), light, np.uint8)
    truth = np.array([[100, 100, 250, 250]])
    plain = draw_detections(image, [], [], [], CLASSES, legend=False, scale=scale)
    picture = draw_detections(image, [], [], [], CLASSES, gt=truth, legend=False, scale=scale)
    first, end = 100 * scale, 250 * scale
    edge = picture[first, first:end, 0]
    beside = picture[first - 1, first:end, 0]  # the pixels above the line
    # White dashes make up more than half of the line, and all have a dark edge.
    assert (edge == 255).sum() > 0.5 * len(edge)
    assert (beside[edge == 255] == 0).all() and (edge == 0).sum() >= 4 * scale
    inside = slice(first + 5, end - 5)
    assert (picture[inside, inside] == plain[inside, inside]).all()


def test_scale_sets_the_size_of_the_picture():
    box = [[100, 100, 200, 200]]
    for size in (300, 1400):
        image = grey(size, 2 * size)
        own = draw_detections(image, box, [1], [0.5], CLASSES, legend=False, scale=1)
        assert own.shape == image.shape and tuple(own[150, 100]) == class_color(1)
        double = draw_detections(image, box, [1], [0.5], CLASSES, legend=False, scale=2)
        assert double.shape == (2 * size, 4 * size, 3)
        assert tuple(double[300, 200]) == class_color(1)
        half = draw_detections(image, box, [1], [0.5], CLASSES, legend=False, scale=0.5)
        assert half.shape == (size // 2, size, 3)
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale: expected more than 0, got"):
            draw_detections(grey(), [], [], [], CLASSES, scale=scale)


def test_the_legend_is_a_strip_below():
    boxes, labels, scores = scattered(5, 40)
    with_legend = draw_detections(grey(), boxes, [1, 1, 2, 1, 2], scores, CLASSES, gt=boxes)
    without = draw_detections(
        grey(), boxes, [1, 1, 2, 1, 2], scores, CLASSES, gt=boxes, legend=False
    )
    assert with_legend.shape[0] > 900 and without.shape[0] == 900
    assert (with_legend[:900] == without).all()
    strip = with_legend[900:]
    assert count(strip, class_color(1)) and count(strip, class_color(2))
    assert not count(strip, class_color(3))
    many = [f"a class of a long name {k}" for k in range(20)]
    boxes, _, scores = scattered(20, 40)
    tall = draw_detections(grey(), boxes, np.arange(1, 21), scores, many)
    assert tall.shape[0] - 900 >= 4 * (strip.shape[0])


def test_no_detections_says_so():
    empty = draw_detections(grey(), np.zeros((0, 4)), [], [], CLASSES)
    assert empty.shape[0] > 900 and (empty[:900] == 128).all()
    assert count(empty[900:], (255, 255, 255))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 3), (2000, 1500)])
def test_any_size_of_image(size):
    height, width = size
    box = [[0, 0, width, height], [-50, -50, 1e9, 1e9], [width, height, width, height]]
    picture = draw_detections(grey(*size), box, [1, 2, 3], [0.9, 0.8, 0.7], CLASSES, gt=box)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_tensors_work_like_arrays():
    boxes, labels, scores = scattered(6, 40)
    arrays = draw_detections(grey(), boxes, labels, scores, CLASSES)
    tensors = draw_detections(grey(), *map(torch.from_numpy, (boxes, labels, scores)), CLASSES)
    assert (arrays == tensors).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((5, 5), np.uint8), [], [], []), "image: expected .*uint8.*\\[5, 5\\]"),
        ((np.zeros((5, 5, 3)), [], [], []), "got float64"),
        ((np.zeros((0, 5, 3), np.uint8), [], [], []), "non-empty"),
        ((grey(), [[1, 2, 3]], [1], [0.5]), "boxes_xyxy: expected \\[N, 4\\] xyxy, got \\[1, 3\\]"),
        ((grey(), [[1, 2, 3, float("nan")]], [1], [0.5]), "boxes_xyxy: expected finite"),
        ((grey(), [[1, 2, 3, 4]], [1, 2], [0.5]), "got 2 and 1 for 1"),
        ((grey(), [[1, 2, 3, 4]], [4], [0.5]), "labels: expected 1 to 3, got 4 to 4"),
        ((grey(), [[1, 2, 3, 4]], [0], [0.5]), "labels: expected 1 to 3, got 0 to 0"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(*arguments, CLASSES)
