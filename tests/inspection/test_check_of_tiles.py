"""Checking and showing data in tiles: sizes, what is cut, what it costs."""

import json

import cv2
import numpy as np
import pytest

from mdssd.cli import main
from mdssd.data import SyntheticScenes, open_dataset
from mdssd.data.tiles import Tiling
from mdssd.inspection.check import check_data
from mdssd.inspection.tile_sheet import tile_sheet
from mdssd.priors import make_priors, ssd_prior_layers

PRIORS = make_priors(ssd_prior_layers(300), 300)


def coco(root, sizes, boxes):
    """Write a COCO data set of grey images, and the boxes of each: x, y, width, height."""
    root.mkdir()
    images, annotations = [], []
    for k, ((width, height), rows) in enumerate(zip(sizes, boxes, strict=True)):
        cv2.imwrite(str(root / f"{k}.png"), np.full((height, width, 3), 128, np.uint8))
        images.append({"id": k, "file_name": f"{k}.png", "width": width, "height": height})
        for box in rows:
            annotations.append(
                {"id": len(annotations), "image_id": k, "category_id": 1, "bbox": box}
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "car"}],
    }
    (root / "train.json").write_text(json.dumps(content))
    return root


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# Columns begin at 0, 240, 480, 600; the single row at 0. What crosses 240 to 300 by more is cut.
WIDE = (900, 300)
BOXES = [[250, 10, 40, 40], [230, 10, 80, 20], [0, 200, 400, 100], [850, 0, 50, 50]]


def test_sizes_and_cut_boxes_by_hand(tmp_path):
    dataset = open_dataset(coco(tmp_path / "d", [WIDE, (300, 300)], [BOXES, []]))
    tiles = Tiling(300, 300, overlap=0.2)
    result = check_data(dataset, PRIORS, 300, tiling=tiles, workers=1, progress=False)
    assert result.sides.tolist() == [[40, 40], [80, 20], [400, 100], [50, 50]]
    assert result.in_tiles.whole.tolist() == [True, False, False, True]
    told = result.to_dict()["tiles"]
    assert told["tiles"] == 5 and told["tiles_per_image"] == [1, 2.5, 4]
    assert told["cut_in_every_tile"] == 2 and told["larger_than_a_tile"] == 1
    assert told["whole"]["all"] == 0.5 and told["whole"]["32 to 64 px"] == 2 / 3
    assert told["whole"]["car"] == 0.5 and told["whole"]["0 to 8 px"] is None
    assert told["size_squeezed"][1] == pytest.approx(np.median([40, 40, 200, 50]) / 3**0.5)
    text = result.text()
    assert "tiles of an image: 2.5 (median; 1 to 4), 5 in all; the network works 2.5 times" in text
    assert "boxes that are cut in every tile: 2 of 4 (50.0%), 1 of them larger than a tile" in text
    assert "--overlap 0.3 shows 1 of them whole: " in text
    assert "--with-whole shows those that are larger than a tile whole" in text
    # The same tiles of an image half the size: everything has twice the size in the input.
    half = Tiling(150, 150, overlap=0.2)
    result = check_data(dataset, PRIORS, 300, tiling=half, workers=1, progress=False)
    assert result.sides.tolist() == [[80, 80], [160, 40], [800, 200], [100, 100]]


def test_the_proposed_overlap_does_what_is_said(tmp_path):
    dataset = open_dataset(coco(tmp_path / "d", [WIDE], [BOXES[:2]]))
    for overlap, cut in ((0.2, 1), (0.3, 0)):
        tiles = Tiling(300, 300, overlap=overlap)
        result = check_data(dataset, PRIORS, 300, tiling=tiles, workers=1, progress=False)
        assert result.to_dict()["tiles"]["cut_in_every_tile"] == cut


def test_the_whole_image_shows_what_is_larger(tmp_path):
    dataset = open_dataset(coco(tmp_path / "d", [WIDE], [BOXES]))
    tiles = Tiling(300, 300, overlap=0.3, with_whole=True)
    result = check_data(dataset, PRIORS, 300, tiling=tiles, workers=1, progress=False)
    assert result.in_tiles.whole.all() and "--with-whole" not in result.text()
    assert result.sides[2].tolist() == pytest.approx([400 / 3, 100])  # of the squeezed image
    assert result.to_dict()["tiles"]["tiles"] == 1 + 4


def test_recall_is_about_what_a_tile_shows(tmp_path):
    dataset = open_dataset(coco(tmp_path / "d", [WIDE], [[[361, 109, 30, 30]]]))
    squeezed = check_data(dataset, PRIORS, 300, workers=1, progress=False)
    assert squeezed.iou[0] < 0.5  # 10 x 30
    tiles = Tiling(300, 300, overlap=0.2)
    result = check_data(dataset, PRIORS, 300, tiling=tiles, workers=1, progress=False)
    assert result.iou[0] > 0.75 and result.sides.tolist() == [[30, 30]]


def test_small_objects_in_large_images_are_pointed_out(tmp_path, capsys):
    small = coco(tmp_path / "d", [(1500, 1500)], [[[x, 700, 24, 24] for x in range(5, 1400, 40)]])
    status, out, err = run(capsys, "data", "check", small, "--prior-scales", "coco")
    assert status == 0, err
    line = "median object: 4.8 px in the input; --tile auto would show it with 24.0 px"
    assert f"  {line} (docs/large-images.md)\n" in out and "whole" not in out
    # Not if it is large enough, and not if the image has no more pixels than the input.
    large = coco(tmp_path / "e", [(1500, 1500)], [[[100, 100, 100, 100]]])
    tiny = coco(tmp_path / "f", [(320, 320)], [[[100, 100, 10, 10]]])
    for data in (large, tiny):
        assert "--tile" not in run(capsys, "data", "check", data, "--prior-scales", "coco")[1]


def test_the_command_fits_priors_to_tiles(tmp_path, capsys):
    rows = [[x, y, 14, 14] for x in range(5, 860, 31) for y in range(3, 280, 29)]
    data = coco(tmp_path / "d", [WIDE], [rows])
    options = ["--tile", "auto", "--fit-priors", "--out", tmp_path / "out"]
    status, out, err = run(capsys, "data", "check", data, *options)
    assert status == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "all 280 0.0000 0.0000 1.0000 1.0000" in lines  # voc, coco, small, fitted
    assert "all 280 14.0 14.0 14.0 1.0000 1.0000" in lines
    assert "median object: 8.1 px in the squeezed image, 14.0 px in its tile" in lines
    told = json.loads((tmp_path / "out/check.json").read_text())
    assert told["tiles"]["tiles"] == 4 and told["tiles"]["width"] == 300
    assert told["fitted_priors"]["recall"]["fitted"]["8 to 16 px"] == 1
    for name in ("sizes.png", "recall.png"):
        assert cv2.imread(str(tmp_path / "out" / name)) is not None


def test_without_a_box(tmp_path, capsys):
    data = coco(tmp_path / "d", [WIDE], [[]])
    dataset = open_dataset(data)
    result = check_data(dataset, PRIORS, 300, tiling=Tiling(300, 300), workers=1, progress=False)
    assert result.to_dict()["tiles"]["size_squeezed"] is None and "4, 4 in all" in result.text()
    assert tile_sheet(dataset, Tiling(300, 300)).shape == (324, 900, 3)


def test_options_of_tiles_need_a_tile(tmp_path, capsys):
    data = coco(tmp_path / "d", [WIDE], [BOXES])
    out = tmp_path / "a.png"
    for words in (["check", data, "--overlap", 0.3], ["show", data, "--with-whole", "--out", out]):
        status, _, err = run(capsys, "data", *words)
        assert status == 2 and "needs --tile beside it" in err
    status, _, err = run(capsys, "data", "show", data, "--out", out, "--tile", 300, "--no-mirror")
    assert status == 2 and "--mirror: --tile shows the images as they are" in err
    assert not out.exists()


def test_the_picture_of_tiles(tmp_path, capsys):
    data = coco(tmp_path / "d", [WIDE], [BOXES])
    out = tmp_path / "a.png"
    status, text, err = run(capsys, "data", "show", data, "--tile", "auto", "--out", out)
    assert status == 0 and text.endswith(f"written: {out}, 1 image of d train\n"), (text, err)
    picture = cv2.imread(str(out))[24:, :, ::-1]
    assert picture.shape == (300, 900, 3)
    assert picture[100, 100].tolist() == [128] * 3  # one tile
    assert picture[150, 270].tolist() == [89] * 3  # two tiles: 240 to 300
    assert picture[150, 301].tolist() == [128] * 3 and picture[150, 500].tolist() == [89] * 3
    assert picture[150, 240].tolist() == [255] * 3  # the edge of a tile
    assert picture[40, 250].tolist() == [60, 255, 60]  # whole in a tile
    assert picture[20, 230].tolist() == [255, 40, 40]  # cut in every tile


def test_a_picture_of_images_that_are_all_left_out(tmp_path, capsys):
    data = coco(tmp_path / "d", [WIDE], [BOXES])
    whole = (data / "0.png").read_bytes()
    (data / "0.png").write_bytes(whole[: len(whole) // 2])
    for tiles in ([], ["--tile", 300]):
        words = ["data", "show", data, "--allow-faults", "--out", tmp_path / "a.png", *tiles]
        status, _, err = run(capsys, *words)
        assert status == 2 and "no image can be used; `mdssd data check` says why" in err


def test_images_of_several_heights_leave_no_gaps(tmp_path):
    sizes = [(600, 100), (600, 600), (600, 100), (600, 100)]
    sheet = tile_sheet(open_dataset(coco(tmp_path / "d", sizes, [[]] * 4)), Tiling(300, 300))
    assert sheet.shape == (24 + 600, 600 + 8 + 600, 3)  # 24 for a line of text, 8 between images
    low = sheet[:, 608:]
    assert [bool((low[y : y + 8] == 255).all()) for y in (124, 256, 60)] == [True, True, False]
    assert (low[388:] == 255).all()


def test_large_images_are_made_smaller():
    scenes = SyntheticScenes(3, image_size=2400)
    sheet = tile_sheet(scenes, Tiling(600, 600), 2)
    assert sheet.shape == (1824, 3608, 3)
    with pytest.raises(ValueError, match="count must be at least 1"):
        tile_sheet(scenes, Tiling(600, 600), 0)
