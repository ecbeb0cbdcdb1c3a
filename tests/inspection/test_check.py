"""Checking data: sizes and recall by hand, every kind of fault, and the contact sheet."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mdssd import ops
from mdssd.cli import main
from mdssd.data import Augmentation, SyntheticScenes, TrainingSet, open_dataset, write_voc
from mdssd.inspection.check import best_iou, check_data
from mdssd.inspection.plots import contact_sheet, write_check
from mdssd.priors import make_priors, mdssd_prior_layers, ssd_prior_layers
from mdssd.weights.checkpoint_json import read_meta

PRIORS = make_priors(ssd_prior_layers(300), 300)
XML = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc(root, boxes, splits=None, size=(300, 300)):
    """Write a VOC folder. boxes: the boxes (class, x1, y1, x2, y2) of each image."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    width, height = size
    for image_id, rows in boxes.items():
        pixels = np.random.default_rng([*image_id.encode()]).integers(
            0, 256, (height, width, 3), np.uint8
        )
        cv2.imwrite(str(root / f"JPEGImages/{image_id}.jpg"), pixels)
        (root / f"Annotations/{image_id}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            + "".join(XML.format(*row) for row in rows)
            + "</annotation>"
        )
    for split, ids in (splits or {}).items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{i}\n" for i in ids))
    return root


def check(path, split="all", priors=PRIORS, **options):
    faults = []
    dataset = open_dataset(path, split, faults=faults)
    return check_data(dataset, priors, 300, faults=faults, progress=False, **options)


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_sizes_are_those_of_the_warped_input(tmp_path):
    boxes = {"a": [("cat", 0, 0, 120, 60), ("dog", 60, 60, 180, 300)], "b": []}
    result = check(voc(tmp_path / "v", boxes, size=(600, 300)))
    assert result.sides.tolist() == [[60, 60], [60, 240]]
    assert result.size.tolist() == [60, 120] and result.ratio.tolist() == [1, 0.25]
    assert result.label.tolist() == [1, 2] and result.image.tolist() == [0, 0]
    assert result.empty == 1 and result.image_ids == ["a", "b"]
    assert [name for name, which in result.by_size() if which.any()] == [
        "32 to 64 px",
        "64 to 128 px",
    ]
    assert not result.broken


def test_best_prior_by_hand():
    # One prior, from 0.1 to 0.5 in both directions.
    prior = torch.tensor([[0.3, 0.3, 0.4, 0.4]])
    boxes = np.array(
        [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.3], [0.3, 0.1, 0.7, 0.5], [0.6, 0.6, 1, 1]]
    )
    np.testing.assert_allclose(best_iou(boxes, prior), [1, 0.5, 1 / 3, 0], atol=1e-6)
    assert best_iou(np.zeros((0, 4)), prior).shape == (0,)
    assert best_iou(boxes, prior[:0]).tolist() == [0, 0, 0, 0]


def test_recall_agrees_with_the_matching_of_training():
    """A box is unreached if only the forced match of training assigns a prior to it."""
    priors = make_priors(mdssd_prior_layers(300), 300)
    scenes = SyntheticScenes(3, seed=4)
    result = check_data(scenes, priors, 300, progress=False)
    reached = []
    for k in range(3):
        boxes = torch.from_numpy(scenes.annotation(k).boxes_xyxy / 300).float()
        for box in boxes:
            match = ops.match_priors([box[None]], priors)
            reached.append(bool((match.iou >= 0.5).any()))
    assert (result.iou >= 0.5).tolist() == reached and 0 < sum(reached) < len(reached)
    assert len(result.unreached) == len(reached) - sum(reached)
    assert result.recall(np.ones(len(reached), bool)) == sum(reached) / len(reached)


def test_each_broken_file_is_named_and_the_rest_is_counted(tmp_path):
    rows = [("cat", 20, 20, 80, 80)]
    root = voc(tmp_path / "v", {name: rows for name in "abcdefg"}, {"train": [*"abcdefg", "x"]})
    cut = root / "JPEGImages/b.jpg"
    cut.write_bytes(cut.read_bytes()[:-400])
    (root / "JPEGImages/c.jpg").write_bytes(b"no picture at all")
    (root / "JPEGImages/d.jpg").unlink()
    (root / "Annotations/e.xml").write_text("<annotation>")
    (root / "Annotations/f.xml").write_text(
        "<?xml version='1.0' encoding='klingon'?><annotation></annotation>"
    )
    (root / "JPEGImages/g.jpg").write_bytes(b"")
    for split in ("all", "train"):
        result = check(root, split)
        assert result.broken and result.image_ids == ["a"] and len(result.iou) == 1
        text = "\n".join(result.faults)
        for part in (
            "b.jpg: the image is truncated",
            "c.jpg: is not an image",
            "JPEGImages/d: no such image",
            "e.xml: broken XML",
            "f.xml: broken XML (its encoding 'klingon' is unknown",
            "g.jpg: the file is empty",
            "x.xml: no such" if split == "train" else "lists x, which has no annotation",
        ):
            assert part in text
        assert len(result.faults) == len(set(result.faults)) == 7, text


def test_broken_rows_of_a_coco_file(tmp_path, capsys):
    root = voc(tmp_path / "v", {"a": [], "b": []})
    entries = [
        {"image_id": 1, "category_id": 7, "bbox": [10, 10, 100, 100]},
        {"image_id": 1, "category_id": 7, "bbox": [10, 10, 100, 100], "iscrowd": 1},
        {"image_id": 1, "category_id": 8, "bbox": [10, 10, 100, 100]},
        {"image_id": 2, "category_id": 7, "bbox": [10, 10]},
        {"image_id": 3, "category_id": 7, "bbox": [10, 10, 50, 50]},
    ]
    names = {1: "a.jpg", 2: "b.jpg", 3: "gone.jpg"}
    content = {
        "images": [{"id": k, "file_name": name} for k, name in names.items()],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": entries,
    }
    path = root / "JPEGImages/set.json"
    path.write_text(json.dumps(content))
    status, out, _ = run(capsys, "data", "check", path, "--out", tmp_path / "out")
    assert status == 1
    found = json.loads((tmp_path / "out/check.json").read_text())
    assert [found["images"], found["crowds"], found["all"]["boxes"]] == [2, 1, 1]
    assert found["images_without_boxes"] == 1 and found["all"]["recall"] == 1
    assert len(found["faults"]) == 1 and len(found["dropped"]) == 2 and found["broken"]
    for part in ("there is no category 8", "bbox is [10, 10]", "gone.jpg: no such image"):
        assert part in out


def test_the_report_begins_with_the_verdict(tmp_path, capsys):
    boxes = {name: [("cat", 20, 20, 80, 80)] * 2 for name in "abcd"}
    root = voc(tmp_path / "v", boxes, {"train": "abc", "test": "d"}, size=(600, 300))
    status, out, _ = run(capsys, "data", "check", root)
    lines = out.splitlines()
    assert (
        status == 0
        and lines[0] == "verdict: can be used; to look at: 4 lines about boxes that may be mistakes"
    )
    assert "  split train: 3 images, 6 boxes" in lines and "  split test: 1 image, 2 boxes" in lines
    assert "  image sizes: 600 x 300" in lines
    assert "of a 600 x 300 image, 100 x 100 px become 50.0 x 100.0" in out
    cv2.imwrite(str(root / "JPEGImages/d.jpg"), np.zeros((90, 50, 3), np.uint8))
    status, out, _ = run(capsys, "data", "check", root)
    assert "widths 50 to 600, heights 90 to 300; most often 600 x 300 (3 of 4)" in out
    assert "  1 annotation with a different size from the image's:" in out
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    status, out, _ = run(capsys, "data", "check", root)
    assert status == 1 and out.startswith("verdict: to be repaired first. files cannot be used: ")
    assert str(tmp_path) not in out and "  JPEGImages/a.jpg: the file is empty" in out
    assert run(capsys, "data", "check", root, "--allow-faults")[0] == 0


def test_the_same_reason_many_times_is_one_line(tmp_path, capsys):
    root = voc(tmp_path / "v", {f"{k:02}": [("cat", 20, 20, 80, 80)] for k in range(20)})
    for k in range(12):
        (root / f"JPEGImages/{k:02}.jpg").write_bytes(b"")
    status, out, _ = run(capsys, "data", "check", root)
    assert status == 1 and "files that cannot be used: 12\n  JPEGImages/00.jpg: the " in out
    assert ", and 11 more like it\n" in out and "JPEGImages/01.jpg" not in out
    for k in range(20):
        (root / f"JPEGImages/{k:02}.jpg").unlink()
    status, _, err = run(capsys, "data", "check", root)
    assert status == 2 and "no image can be used; the first fault: " in err
    assert ", and 19 more like it" in err


@pytest.mark.parametrize(
    "row, reason",
    [
        (("cat", "97,0", 20, 80, 80), "bndbox/xmin is '97,0', expected a number"),
        (("cat", 0.1, 0.2, 0.5, 0.9), "coordinates from 0 to 1? Expected pixels"),
        (("cat", 320, 20, 380, 80), "lies outside the image of 300 x 300"),
    ],
)
def test_unusable_boxes_are_the_verdict_and_refused_by_train(tmp_path, capsys, row, reason):
    root = voc(tmp_path / "v", {"a": [row, row], "b": [("cat", 20, 20, 80, 80)] * 8})
    status, out, _ = run(capsys, "data", "check", root)
    assert status == 1 and reason in out.splitlines()[0]
    assert "2 of 10 boxes (20%) cannot be used" in out.splitlines()[0]
    assert run(capsys, "data", "check", root, "--allow-faults")[0] == 0
    for command in (["train"], ["data", "show", "--out", tmp_path / "a.png"]):
        data = [root] if command[0] == "data" else ["--data", root, "--out", tmp_path / "run"]
        status, _, err = run(capsys, *command, *data)
        assert status == 2 and reason in err and "--allow-faults" in err
    assert "20%" in json.dumps(check(root).to_dict()["refused"])


def test_the_option_that_sets_better_priors_is_named(tmp_path, capsys):
    root = voc(tmp_path / "v", {"a": [("cat", 150, 150, 160, 160)]})
    _, out, _ = run(capsys, "data", "check", root, "--prior-scales", "voc")
    assert "--prior-scales small of `mdssd train` sets the priors that reach 100.0%" in out
    for options, name in ((["--prior-scales", "small"], "small"), ([], "fitted")):
        _, out, _ = run(capsys, "data", "check", root, *options)
        assert f"priors of mdssd300 ({name})" in out and "--prior-scales" not in out


def test_turned_photographs_and_their_boxes(tmp_path):
    """Sizes in the input are those of the picture as it is shown."""
    root = voc(tmp_path / "v", {"a": [("cat", 0, 0, 60, 30)]}, size=(200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((200, 100, 3), np.uint8)).save(root / "JPEGImages/a.jpg", exif=exif)
    result = check(root)
    assert result.sides.tolist() == [[90, 90]] and result.image_sizes == {(200, 100): 1}
    assert "EXIF turns it to the stated 200 x 100" in result.report


def test_boxes_to_look_at(tmp_path):
    rows = [
        ("cat", 20, 20, 80, 80),
        ("dog", 20, 20, 80, 80),
        ("cat", 100, 100, 103, 180),
        ("cat", 250, 250, 305, 290),
        ("cat", 200, 200, 301, 301),
        ("cat", 40, 40, 40, 90),
    ]
    result = check(voc(tmp_path / "v", {"a": rows}))
    assert [line.partition("a.jpg: ")[2] for line in result.suspicious] == [
        "dog (20, 20, 80, 80) occurs twice, first as cat",
        "cat (100, 100, 103, 180) is 3.0 x 80.0 px in the input",
        "cat (250, 250, 305, 290) reaches beyond the image of 300 x 300",
    ]
    assert len(result.dropped) == 1 and "has no area" in result.dropped[0]
    assert result.sides.max() == 100 and not result.broken
    assert len(check(tmp_path / "v", tiny=2).suspicious) == 2


def test_a_region_without_a_class_is_no_mistake(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((300, 300, 3), np.uint8))
    box = "a.png,20,20,80,80"
    rows = f"{box},cat,0\n{box},dog,1\n{box},cat,1\n{box},dog,0\n"
    (tmp_path / "a.csv").write_text("path,x1,y1,x2,y2,class,iscrowd\n" + rows)
    (line,) = check(tmp_path).suspicious
    assert line.endswith("dog (20, 20, 80, 80) occurs twice, first as cat")


def test_images_in_two_splits_by_name_and_by_content(tmp_path, capsys):
    boxes = {name: [("cat", 20, 20, 80, 80)] for name in "abcd"}
    splits = {"train": "ab", "val": "c", "trainval": "abc", "test": "db"}
    root = voc(tmp_path / "v", boxes, splits)
    (root / "JPEGImages/d.jpg").write_bytes((root / "JPEGImages/a.jpg").read_bytes())
    status, out, _ = run(capsys, "data", "check", root)
    assert status == 1
    result = check(root)
    first, second = (root / f"JPEGImages/{name}.jpg" for name in "ad")
    assert [line.rpartition("Main: ")[2] for line in result.leaks] == [
        "b is in train and test",
        "b is in trainval and test",
        f"{first} of train and {second} of test are the same file",
        f"{first} of trainval and {second} of test are the same file",
    ]
    assert len(result.duplicates) == 1 and "a.jpg" in result.duplicates[0]
    assert "files that cannot be used: none" in out and "images in two splits: 4" in out
    (root / "ImageSets/Main/test.txt").write_text("")
    assert "test.txt: the split lists no image" in "\n".join(check(root).faults)


def test_plots_and_json_of_generated_scenes(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    status, text, _ = run(capsys, "data", "check", "--scenes", 3, "--out", out, "--model", "ssd512")
    assert status == 0 and "3 images of 512 x 512" in text and "priors of ssd512 (fitted)" in text
    assert sorted(p.name for p in out.iterdir()) == ["check.json", "recall.png", "sizes.png"]
    for name in ("recall.png", "sizes.png"):
        pixels = cv2.imread(str(out / name))
        assert pixels.shape[1] == 1100 and len(np.unique(pixels)) > 20
    assert json.loads((out / "check.json").read_text())["broken"] is False


@pytest.mark.filterwarnings("error")
def test_plots_take_any_name(tmp_path):
    names = ["$x_{", "$2^^3$", "猫", "a" * 120]
    boxes = {"a": [(name, 20, 20, 80, 80) for name in names]}
    write_check(check(voc(tmp_path / "v", boxes)), tmp_path / "out")


def test_a_data_set_without_a_box(tmp_path):
    path = voc(tmp_path / "v", {"a": [("cat", 1, 1, 9, 9)], "b": []}, {"test": "b"})
    result = check(path, "test")
    assert result.recall(np.ones(0, bool)) is None and "recall" in result.text()
    assert result.to_dict()["all"] == {"boxes": 0, "size": None, "recall": None}
    write_check(result, tmp_path / "out")


def test_wrong_input_is_one_line(tmp_path, capsys):
    root = voc(tmp_path / "v", {"a": [("cat", 20, 20, 80, 80)]}, {"train": "a"})
    (tmp_path / "empty").mkdir()
    nothing = voc(tmp_path / "w", {"a": [("cat", 20, 20, 80, 80)]})
    (nothing / "JPEGImages/a.jpg").unlink()
    for arguments, reason in [
        (["check", tmp_path / "empty"], "no data set was recognised"),
        (["check", tmp_path / "gone"], "no such file or folder"),
        (["check", root, "--split", "moon"], "no such split"),
        (["check", root, "--prior-scales", "x"], "--prior-scales: expected one of"),
        (["check", root, "--tiny", "nan"], "--tiny: expected a number of at least 0"),
        (["check", nothing], "no image can be used; the first fault: "),
        (["show", root, "--out", tmp_path / "a.jpg"], "ends with .png"),
        (["show", root, "--out", tmp_path / "a.png", "--no-augment", "--no-crop"], "--no-augment"),
        (["show", nothing, "--out", tmp_path / "a.png"], "no such image"),
    ]:
        status, _, err = run(capsys, "data", *arguments)
        assert status == 2 and reason in err and err.count("mdssd: error:") == 1, err


def test_sheet_is_what_training_sees(tmp_path, capsys):
    root = tmp_path / "v"
    write_voc(SyntheticScenes(5, seed=2), root)
    data = open_dataset(root, "all")
    augmentation = Augmentation(300, expand=1, crop_min_scale=0.7)  # training's own
    sheet = contact_sheet(data, augmentation, count=7, seed=3)
    assert sheet.shape == (3 * 600 + 16, 3 * 600 + 16, 3) and sheet.dtype == np.uint8
    assert (sheet[1216:, 608:] == 255).all()  # seven of nine tiles are used
    np.testing.assert_array_equal(sheet, contact_sheet(data, augmentation, 7, 3))
    assert not np.array_equal(sheet, contact_sheet(data, augmentation, 7, 4))
    for name in ("one.png", "two.png"):
        status, _, _ = run(
            capsys, "data", "show", root, "--out", tmp_path / name, "--count", 7, "--seed", 3
        )
        assert status == 0
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "one.png"))[..., ::-1], sheet)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_sheet_adds_the_mean_back():
    plain = Augmentation(300, expand=1, photometric=False, crop=False, mirror=False)
    scenes = SyntheticScenes(1, seed=6, objects=(0, 0))
    sheet = contact_sheet(scenes, plain, 1)
    want = cv2.resize(scenes[0].image, (600, 600), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(sheet, want)
    # The scene has the size of the input, so no interpolation changes it.
    assert torch.equal(
        TrainingSet(scenes, plain)[0][0], plain(scenes[0], np.random.default_rng())[0]
    )


def test_sheet_of_no_sample():
    with pytest.raises(ValueError, match="contact_sheet: count must be at least 1, got 0"):
        contact_sheet(SyntheticScenes(1), Augmentation(300), 0)


def test_priors_of_a_model_are_those_it_has():
    result = check_data(SyntheticScenes(1), PRIORS, 300, progress=False)
    squares = {w for w, h in result.prior_sides if w == h}
    assert {30, 60, 111, 162, 213, 264} < squares
    ratios = {round(w / h, 2) for w, h in result.prior_sides}
    assert ratios == {1, 2, 0.5, 3, 0.33}


def test_each_model_is_compared_by_its_own_priors(tmp_path, capsys):
    root = voc(tmp_path / "v", {"a": [("cat", 20, 20, 80, 80)]})
    for model, priors in [
        ("ssd513", "ssd513 (coco): 20.5, 32.4, 51.3"),
        ("mdssd300", "mdssd300 (coco): 21, 30.7, 45"),
    ]:
        options = ["--model", model, "--prior-scales", "coco"]
        status, out, err = run(capsys, "data", "check", root, *options)
        assert status == 0 and f"priors of {priors}" in out, err


def test_recall_with_the_other_scales_of_the_model(tmp_path, capsys):
    """Of squares of 10, 21 and 30 px, `small` priors reach all, `coco` two and `voc` one."""
    sides = {"a": 10, "b": 21, "c": 30}
    root = voc(tmp_path / "v", {k: [("cat", 150, 150, 150 + s, 150 + s)] for k, s in sides.items()})
    for model, scales, line in [
        ("mdssd300", "voc", "coco 0.6667, small 1.0000"),
        ("mdssd300", "small", "voc 0.3333, coco 0.6667"),
        ("ssd300", "voc", "coco 0.6667"),
    ]:
        options = ["--model", model, "--prior-scales", scales]
        _, out, err = run(capsys, "data", "check", root, *options)
        assert f"recall of all boxes with other priors: {line}\n" in out, err
    options = ["--model", "ssd321", "--prior-scales", "voc"]
    assert "other priors" not in run(capsys, "data", "check", root, *options)[1]
    assert check(root).to_dict()["other_recall"] == {}


def test_splits_of_each_year_of_a_devkit_are_compared(tmp_path):
    box = [("cat", 20, 20, 80, 80)]
    voc(tmp_path / "VOC2007", {"a": box, "b": box}, {"trainval": "a", "test": "ab"})
    voc(tmp_path / "VOC2012", {"c": box}, {"train": "c", "val": "c"})
    result = check(tmp_path)
    assert result.image_ids == ["a", "b", "c"] and len(result.label) == 3
    assert [line.rpartition(": ")[2] for line in result.leaks] == [
        "a is in trainval and test", "c is in train and val",
    ]  # fmt: skip


def test_a_photograph_of_one_year_in_the_test_split_of_another(tmp_path):
    box = [("cat", 20, 20, 80, 80)]
    voc(tmp_path / "VOC2007", {"a": box, "b": box}, {"trainval": "a", "test": "b"})
    voc(tmp_path / "VOC2012", {"c": box}, {"trainval": "c"})
    first, second = tmp_path / "VOC2007/JPEGImages/b.jpg", tmp_path / "VOC2012/JPEGImages/c.jpg"
    second.write_bytes(first.read_bytes())
    assert check(tmp_path).leaks == [f"{second} of trainval and {first} of test are the same file"]
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("a\n")
    assert [line.rpartition(": ")[2] for line in check(tmp_path).leaks] == [
        "a is in trainval and test"
    ]


def test_fitted_priors_by_size_before_and_after(tmp_path, capsys):
    """Squares of 14 px, of which `coco` priors reach none and fitted ones all.

    The fit is that of training, so it does not see the long box of the test split.
    """
    rows = [("cat", x, y, x + 14, y + 14) for x in range(5, 280, 31) for y in range(3, 280, 29)]
    images = {"c": [("cat", 10, 20, 290, 45)], "a": rows, "b": [("dog", 20, 20, 120, 100)]}
    root = voc(tmp_path / "v", images, {"train": "ba", "test": "c"})
    options = ["--fit-priors", "--prior-scales", "coco", "--out", tmp_path / "out"]
    status, out, err = run(capsys, "data", "check", root, *options)
    assert status == 0, err
    assert "priors of mdssd300 (coco)" in out and "recall of all boxes with other" not in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "boxes that priors reach boxes voc coco small fitted" in lines
    assert "8 to 16 px 90 0.0000 0.0000 1.0000 1.0000" in lines
    assert "64 to 128 px 2 0.5000 0.5000 0.5000 0.5000" in lines
    assert "0 to 8 px 0 - - - -" in lines
    assert "75 x 75 cells, 4 px apart: " in out and "1 x 1 cells, 300 px apart: 261 x 261" in out
    fit = json.loads((tmp_path / "out/check.json").read_text())["fitted_priors"]
    assert [len(of_map) for of_map in fit["prior_scales"]] == [4, 4, 6, 6, 6, 4, 4]
    assert fit["cells"] == [75, 38, 19, 10, 5, 3, 1] and fit["steps"][:3] == [4, 8, 16]
    assert list(fit["recall"]) == ["voc", "coco", "small", "fitted"]
    assert fit["recall"]["coco"]["all"] == pytest.approx(1 / 92)
    assert fit["recall"]["fitted"]["all"] == pytest.approx(91 / 92)
    assert fit["recall"]["fitted"]["8 to 16 px"] == 1
    assert fit["recall"]["fitted"]["from 128 px"] is None
    assert cv2.imread(str(tmp_path / "out/recall.png")) is not None
    # `mdssd train` takes these sizes: from a recipe, and by itself.
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f"prior_scales = {fit['prior_scales']}\nmodel = 'mdssd300'\n")
    train = ["train", "--data", root, "--iterations", 1, "--batch-size", 2, "--width", 0.0625]
    train += ["--workers", 0, "--threads", 1, "--batch-norm"]
    for name, given in (("a", ["--recipe", recipe]), ("b", ["--prior-scales", "auto"])):
        status, out, err = run(capsys, *train, *given, "--out", tmp_path / name)
        assert status == 0, err
        assert (
            read_meta(tmp_path / name / "last.json")["model"]["prior_scales"]
            == (fit["prior_scales"])
        )


def test_without_the_option_there_is_no_table(tmp_path, capsys):
    root = voc(tmp_path / "v", {"a": [("cat", 150, 150, 160, 160)]})
    assert "boxes that priors reach" not in run(capsys, "data", "check", root)[1]
    assert check(root).to_dict()["fitted_priors"] is None


def test_images_of_the_size_of_the_input_are_not_said_to_be_squeezed():
    text = check_data(SyntheticScenes(2, image_size=300), PRIORS, 300, progress=False).text()
    assert "every image has the size of the input" in text and "squeezed" not in text
    text = check_data(SyntheticScenes(2, image_size=200), PRIORS, 300, progress=False).text()
    assert "every image is squeezed to 300 x 300" in text
