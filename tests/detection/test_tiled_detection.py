"""Detection in the tiles of large images, and what is found in them put together."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detection.marks import dotted, marks_detector

import mdssd
from mdssd import cli, ops
from mdssd.data.synthetic import SyntheticScenes
from mdssd.data.tiles import Tiling, Window
from mdssd.detection.detector import Detector
from mdssd.detection.tiled import _Places, put_together, tiles

DEMO = Path(__file__).parents[2] / "demo/mdssd300-shapes.json"


def test_an_object_is_found_where_it_is():
    image = dotted(100, 70, (50, 40), (10, 60), (90, 8))
    (found,) = marks_detector()(image)
    want = {
        (x + 0.5 - 4, y + 0.5 - 4, x + 0.5 + 4, y + 0.5 + 4)
        for x, y in ((50, 40), (10, 60), (90, 8))
    }
    assert {tuple(box) for box in found["boxes"].tolist()} == want
    assert found["labels"].tolist() == [1, 1, 1]


def test_an_object_in_many_tiles_is_found_once():
    """With an overlap of 0.9 there are a hundred tiles about each pixel."""
    (found,) = marks_detector(overlap=0.9)(dotted(100, 70, (50, 40)))
    assert found["boxes"].tolist() == [[46.5, 36.5, 54.5, 44.5]]


@pytest.mark.parametrize("shape", [(32, 32), (20, 10), (1, 1), (32, 1), (500, 1), (1, 500)])
def test_images_of_any_shape(shape):
    width, height = shape
    at = (width - 1, height - 1)
    (found,) = marks_detector()(dotted(width, height, at))
    x, y = at
    want = [max(0, x - 3.5), max(0, y - 3.5), min(width, x + 4.5), min(height, y + 4.5)]
    assert found["boxes"].tolist() == [want]
    (found,) = marks_detector()(dotted(width, height))
    assert found["boxes"].shape == (0, 4) and found["labels"].dtype == torch.int64


def test_a_narrow_image_is_padded_with_the_mean():
    image = np.full((10, 40, 3), 7, np.uint8)
    (first, pixels), (second, _) = tiles(image, Tiling(32, 32), (100, 50, 25.6))
    assert (first.x, second.x) == (0, 8)
    assert pixels.shape == (32, 32, 3)
    assert (pixels[:10] == 7).all() and (pixels[10:] == (100, 50, 26)).all()


def test_the_tiles_of_several_images_share_batches():
    detector = marks_detector(overlap=0, batch_size=4)
    images = [dotted(64, 32, (5, 5)), dotted(96, 32), dotted(32, 32, (9, 9))]  # 2, 3 and 1 tiles
    found = detector(images)
    assert detector.model.batches == [4, 2]
    assert [len(each["boxes"]) for each in found] == [1, 0, 1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_neither_batches_nor_workers_change_the_result(batch_size, workers, tmp_path):
    rng = np.random.default_rng(0)
    images = [
        dotted(w, h, *rng.integers(0, (w, h), (6, 2))) for w, h in rng.integers(20, 150, (7, 2))
    ]
    want = marks_detector()(images)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    items = [*images[:3], broken, *images[3:]]
    results = list(marks_detector().stream(items, batch_size=batch_size, workers=workers))
    assert "broken.png" in str(results.pop(3).error)
    for result, image, found in zip(results, images, want, strict=True):
        assert result.size == image.shape[:2]
        assert all(torch.equal(result.found[name], found[name]) for name in found)


def test_results_come_before_all_images_are_read():
    def images():
        for k in range(100):
            taken.append(k)
            yield dotted(32, 32)

    taken = []
    stream = marks_detector(batch_size=2).stream(images(), workers=0)
    next(stream)
    assert len(taken) <= 4
    stream.close()


def test_a_long_run_of_broken_files_shows_early(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG")
    taken = []

    def images():
        yield dotted(32, 32)
        for k in range(100):
            taken.append(k)
            yield path

    stream = marks_detector(batch_size=2).stream(images(), workers=0)
    assert next(stream).error is None
    assert len(taken) < 12
    stream.close()


def found_in(*boxes, scores=None, labels=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores or [0.9] * len(boxes)),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
    }


LEFT = Window(0, 0, 100, 100, (False, False, True, False))
RIGHT = Window(80, 0, 100, 100, (True, False, False, False))


def merged(left, right, threshold=0.45):
    found = put_together([(LEFT, left), (RIGHT, right)], (100, 180), threshold)
    return [[round(v) for v in box] for box in found["boxes"].tolist()], found


def test_a_cut_box_gives_way_to_the_whole_one():
    # x 70 to 100 is what the left tile sees of an object from 70 to 110; the right one sees 80 on.
    left, right = found_in([0.90, 0.2, 1, 0.4]), found_in([0.10, 0.2, 0.4, 0.4])
    assert merged(left, right)[0] == [[90, 20, 120, 40]]
    # Also if its score is higher, up to four times as high.
    left = found_in([0.90, 0.2, 1, 0.4], scores=[0.95])
    right = found_in([0.10, 0.2, 0.4, 0.4], scores=[0.3])
    boxes, found = merged(left, right)
    assert boxes == [[90, 20, 120, 40]] and found["scores"].tolist() == pytest.approx([0.3])
    right["scores"][0] = 0.1
    assert merged(left, right)[0] == [[90, 20, 100, 40], [90, 20, 120, 40]]
    # Another class is another object.
    right = found_in([0.10, 0.2, 0.4, 0.4], labels=[2])
    assert len(merged(left, right)[0]) == 2


def test_the_parts_of_an_object_that_no_tile_shows_whole_are_joined():
    # An object from x 20 to 160 is wider than the tiles' overlap of 20.
    left, right = found_in([0.2, 0.2, 1, 0.4]), found_in([0, 0.2, 0.8, 0.4])
    assert merged(left, right)[0] == [[20, 20, 100, 40], [80, 20, 160, 40]]  # they share 20 of 80
    left, right = found_in([0.7, 0.2, 1, 0.4]), found_in([0, 0.2, 0.3, 0.4])
    boxes, found = merged(left, right)
    assert boxes == [[70, 20, 110, 40]]
    assert found["scores"].tolist() == pytest.approx([0.9])


def test_a_part_with_a_low_score_does_not_enlarge_a_sure_one():
    left = found_in([0.7, 0.2, 1, 0.4])  # 70 to 110, with that of the right tile
    right = found_in([0, 0.2, 0.3, 0.4], [0, 0.1, 0.9, 1], scores=[0.9, 0.2])
    assert merged(left, right)[0] == [[70, 20, 110, 40]]
    right["scores"][1] = 0.25  # more than a quarter of 0.9
    assert merged(left, right)[0] == [[70, 10, 170, 100]]
    right["scores"][1], right["labels"][1] = 0.2, 2
    assert merged(left, right)[0] == [[70, 20, 110, 40], [80, 10, 170, 100]]
    # In the same tile as well, but not where they share less than half of the smaller.
    right = found_in([0, 0.2, 0.3, 0.4], [0, 0.1, 0.9, 1], scores=[0.9, 0.2])
    assert merged(found_in(), right)[0] == [[80, 20, 110, 40]]
    right = found_in([0, 0.2, 0.3, 0.4], [0, 0.31, 0.9, 1], scores=[0.9, 0.2])
    assert merged(found_in(), right)[0] == [[80, 20, 110, 40], [80, 31, 170, 100]]


def test_the_boxes_near_a_rectangle_are_those_that_meet_it():
    """Boxes of 1 to 5,000 pixels, of which some lie on the borders of groups and columns."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 6000, (3000, 2))
    sides = np.exp(rng.uniform(0, np.log(5000), (3000, 2)))
    corners[:500], sides[:500] = corners[:500] // 256 * 256, 256
    boxes = torch.from_numpy(np.hstack([corners, corners + sides])).float()
    chosen = torch.arange(0, 3000, 2)
    places = _Places(chosen, boxes)
    for _ in range(100):
        left, top = rng.integers(0, 6000, 2).tolist()
        right, bottom = left + int(rng.integers(1, 700)), top + int(rng.integers(1, 700))
        x1, y1, x2, y2 = boxes[chosen].T
        want = chosen[(x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top)]
        near = places.near(left, top, right, bottom)
        assert near.sort().values.tolist() == want.tolist()


def test_few_boxes_are_looked_at(monkeypatch):
    """However many boxes an image has, those of other places are not compared."""
    edge = torch.arange(0, 100_000, 100.0)
    boxes = torch.cartesian_prod(edge, torch.arange(0, 10_000, 100.0))
    boxes = torch.cat((boxes, boxes + 50), 1)
    boxes = torch.cat((boxes, torch.tensor([[0, 0, 100_000, 10_000.0]])))
    places, looked_at = _Places(torch.arange(len(boxes)), boxes), []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda found: looked_at.append(cat(found)) or looked_at[-1])
    near = places.near(5000, 5000, 5300, 5300)
    assert len(near) == 10 and len(looked_at[0]) < 100


def test_whole_boxes_that_two_tiles_show_are_one():
    left = found_in([0.84, 0.2, 0.94, 0.3], scores=[0.6])
    right = found_in([0.05, 0.2, 0.14, 0.3], scores=[0.8])
    boxes, found = merged(left, right)
    assert boxes == [[85, 20, 94, 30]] and found["scores"].tolist() == pytest.approx([0.8])


def test_a_part_inside_of_a_whole_box_of_the_same_tile_remains():
    """Suppression in the tile has kept both."""
    left = found_in([0.6, 0.2, 0.98, 0.8], [0.9, 0.4, 1, 0.5])
    assert len(merged(left, found_in())[0]) == 2


def test_the_edges_of_the_image_cut_nothing():
    left = found_in([0, 0.2, 0.2, 0.4])
    right = found_in([0.9, 0, 1, 0.4])
    assert merged(left, right)[0] == [[0, 20, 20, 40], [170, 0, 180, 40]]


def test_small_objects_in_a_large_scene_are_found():
    """The demo's network has learnt objects of 7 to 45 pixels; squeezed, they have 2 to 13."""
    scene = SyntheticScenes(1, seed=3, image_size=1000)[0]
    shares = {}
    for tile in (None, "auto"):
        detector = Detector.from_checkpoint(DEMO, tile=tile, score_threshold=0.5)
        (found,) = detector(scene.image)
        best = ops.box_iou(torch.from_numpy(scene.boxes_xyxy), found["boxes"]).amax(1)
        shares[tile] = float((best > 0.5).float().mean())
    assert shares["auto"] > 0.9 and shares[None] < 0.2


def test_the_commands(capsys, tmp_path):
    data = SyntheticScenes(2, seed=3, image_size=450)
    for k in range(2):
        cv2.imwrite(f"{tmp_path}/{k}.png", data[k].image[:, :, ::-1])
    words = [
        "detect",
        str(DEMO),
        str(tmp_path),
        "--tile",
        "auto",
        "--overlap",
        "0.3",
        "--with-whole",
    ]
    assert cli.main([*words, "--threads", "1", "--out", f"{tmp_path}/found"]) == 0
    found = json.loads(Path(f"{tmp_path}/found/detections.json").read_text())
    assert sum(len(image["detections"]) for image in found) > 50
    words = ["eval", str(DEMO), "--scenes", "2", "--threads", "1", "--tile", "300x200"]
    assert cli.main([*words, "--out", f"{tmp_path}/eval"]) == 0
    about = json.loads(Path(f"{tmp_path}/eval/evaluation.json").read_text())["about"]
    assert about["tiles"] == {"width": 300, "height": 200, "overlap": 0.2, "with_whole": False}
    for option, message in (
        (
            ["--tile", "0"],
            "--tile: expected auto, a number of pixels such as 300, or width x heigh",
        ),
        (
            ["--tile", "300", "--overlap", "1"],
            "--overlap: expected a number from 0 to 0.9, got '1'",
        ),
        (["--tile", "300", "--tile-scale", "0"], "--tile-scale: expected a number above 0 and at "),
        (["--with-whole"], "--with-whole: needs --tile beside it"),
        (["--overlap", "0.5"], "--overlap: needs --tile beside it"),
    ):
        capsys.readouterr()
        assert cli.main(["detect", str(DEMO), str(tmp_path), *option]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="overlap: expected 0 to 0.9, got 2"):
        mdssd.Detector(mdssd.ssd300(2, width=0.0625), tile=300, overlap=2)
