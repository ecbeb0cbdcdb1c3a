"""Generated scenes are reproducible, and their boxes fit the shapes."""

import numpy as np
import pytest

from mdssd.data import SyntheticScenes, open_dataset
from mdssd.data.synthetic import _covered, _draw


def test_a_scene_depends_on_seed_and_index_alone():
    scenes, fewer = SyntheticScenes(9, seed=4), SyntheticScenes(3, seed=4)
    fewer[0], fewer[1]
    for sample in (scenes[2], scenes[2], fewer[2], fewer[-1]):
        np.testing.assert_array_equal(sample.image, scenes[2].image)
        np.testing.assert_array_equal(sample.boxes_xyxy, scenes[2].boxes_xyxy)
        np.testing.assert_array_equal(sample.labels, scenes[2].labels)
        assert sample.image_id == "scene_000002"
    for other in (scenes[3], SyntheticScenes(9, seed=5)[2]):
        assert not np.array_equal(other.image, scenes[2].image)
        assert not np.array_equal(other.boxes_xyxy, scenes[2].boxes_xyxy)


def test_annotation_agrees_with_the_scene():
    scenes = SyntheticScenes(5)
    for k in range(5):
        alone = scenes.annotation(k)
        np.testing.assert_array_equal(alone.boxes_xyxy, scenes[k].boxes_xyxy)
        np.testing.assert_array_equal(alone.labels, scenes[k].labels)
        assert alone.image.shape == (0, 0, 3)


def test_many_small_objects_of_every_class():
    scenes = SyntheticScenes(60)
    samples = [scenes.annotation(k) for k in range(60)]
    boxes = np.concatenate([s.boxes_xyxy for s in samples])
    labels = np.concatenate([s.labels for s in samples])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert 8 - 1e-3 <= sides.min() and sides.max() <= 40 + 1e-3
    assert 16 < np.median(sides) < 20
    assert 10 < len(boxes) / 60 < 20
    counts = np.bincount(labels, minlength=6)
    assert scenes.classes == ["cross", "disc", "ring", "square", "triangle"]
    assert counts[0] == 0 and len(counts) == 6 and counts[1:].min() > 0.1 * len(labels)


def test_boxes_lie_inside_and_hardly_cover_each_other():
    scenes = SyntheticScenes(40, image_size=200, objects=(60, 60))
    for k in range(40):
        boxes = scenes.annotation(k).boxes_xyxy.astype(float)
        assert (boxes >= 0).all() and (boxes <= 200).all() and len(boxes) > 5
        for i in range(1, len(boxes)):
            assert _covered(boxes[i : i + 1], boxes[:i]).max() <= 0.1 + 1e-5


def test_cover_by_hand():
    new = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], float)
    old = np.array([[5, 5, 25, 25], [9, 0, 10, 10]], float)
    assert _covered(new, old).tolist() == [1.0, 0.0]
    assert _covered(new, old[:1]).tolist() == [0.25, 0.0]
    assert _covered(new, np.zeros((0, 4))).tolist() == [0.0, 0.0]


def test_boxes_are_tight_around_what_is_drawn():
    scenes = SyntheticScenes(6, image_size=120, sizes=(8, 40), objects=(40, 40))
    for k in range(6):
        for shape in scenes._shapes(k)[0]:
            canvas = np.full((120, 120, 3), 128, np.uint8)
            _draw(canvas, shape, np.random.default_rng(k))
            rows, columns = np.nonzero((canvas != 128).any(2))
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # Thin corners of rotated shapes cover too little of a pixel to be visible.
            assert np.abs(seen - shape.box_xyxy).max() < 1.6


def test_every_object_can_be_seen():
    """The pixels inside a box differ clearly from the background around it."""
    scenes = SyntheticScenes(8)
    hidden = total = 0
    for k in range(8):
        sample = scenes[k]
        image = sample.image.astype(float)
        for x1, y1, x2, y2 in sample.boxes_xyxy:
            middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
            side = max(x2 - x1, y2 - y1)
            rows, columns = np.mgrid[0:300, 0:300] + 0.5
            distance = np.maximum(abs(columns - middle_x), abs(rows - middle_y))
            inside = image[distance < side * 0.4].mean(0)
            around = np.median(image[(distance > side * 0.6) & (distance < side * 0.9)], axis=0)
            hidden += np.abs(inside - around).sum() < 15
            total += 1
    assert hidden < 0.1 * total


def test_scenes_differ_in_colour_and_texture():
    scenes = SyntheticScenes(30)
    means = np.array([scenes[k].image.mean((0, 1)) for k in range(30)])
    assert means.std(0).min() > 20


def test_other_sizes_and_counts():
    scenes = SyntheticScenes(2, image_size=512, sizes=(10, 20))
    assert scenes[0].image.shape == (512, 512, 3)
    sides = np.concatenate([s.boxes_xyxy[:, 2:] - s.boxes_xyxy[:, :2] for s in scenes]).max(1)
    assert sides.max() <= 20 + 1e-3
    empty = SyntheticScenes(1, objects=(0, 0))[0]
    assert empty.boxes_xyxy.shape == (0, 4) and empty.image.shape == (300, 300, 3)
    assert len(SyntheticScenes(1, image_size=32, sizes=(8, 16))[0].image) == 32


def test_end_of_the_scenes():
    scenes = SyntheticScenes(3)
    assert len(list(scenes)) == len(scenes) == 3
    with pytest.raises(IndexError):
        scenes[3]


@pytest.mark.parametrize(
    "options, word",
    [
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"objects": (5, 3)}, "objects"),
        ({"sizes": (8, 200)}, "sizes"),
        ({"sizes": (30, 20)}, "sizes"),
    ],
)
def test_bad_options(options, word):
    with pytest.raises(ValueError, match=f"SyntheticScenes: {word}"):
        SyntheticScenes(**options)


def test_open_dataset_without_a_path():
    train, test = open_dataset(None, image_size=128), open_dataset(None, train=False)
    assert len(train) == 1000 and len(test) == 200 and train.image_size == 128
    assert len(open_dataset(None, "test", count=7)) == 7
    assert not np.array_equal(train.annotation(0).boxes_xyxy, test.annotation(0).boxes_xyxy)
    with pytest.raises(ValueError, match="splits train and test, got 'val'"):
        open_dataset(None, "val")
    with pytest.raises(ValueError, match="classes does not apply to generated scenes"):
        open_dataset(None, classes=["disc"])
