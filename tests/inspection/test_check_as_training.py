"""`mdssd data check` without a split refuses what `mdssd train` would refuse."""

import cv2
import numpy as np
import pytest

from mdssd.cli import main

BOX = "0 0.5 0.5 0.5 0.5\n"


def yolo(root, train=BOX, train_folder="images/train", train_images=4, val_images=4, val=BOX):
    """Write YOLO labels. train: the rows of each label file of train; None: no such files."""
    for split, rows, count in (("train", train, train_images), ("val", val, val_images)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for k in range(count):
            noise = np.random.default_rng([*split.encode(), k]).integers(0, 256, (60, 80, 3))
            cv2.imwrite(str(root / f"images/{split}/{k}.png"), noise.astype(np.uint8))
            if rows is not None:
                (root / f"labels/{split}/{k}.txt").write_text(rows)
    (root / "data.yaml").write_text(f"train: {train_folder}\nval: images/val\nnames: [car]\n")
    return root


def verdict(capsys, root, *options):
    """Return the exit status of the check and its first line."""
    arguments = ["--prior-scales", "coco", *options]
    status = main(["data", "check", str(root), *arguments])
    return status, capsys.readouterr().out.splitlines()[0]


def refusal(capsys, root, *options):
    """Return the reason with which `mdssd train` refuses the data; "" if it takes them."""
    arguments = ["--iterations", "1", "--width", "0.01", "--batch-size", "1", "--workers", "0"]
    out = ["--out", str(root.parent / "run"), "--prior-scales", "coco", "--threads", "1"]
    status = main(["train", "--data", str(root), *arguments, *out, *options])
    error = capsys.readouterr().err
    assert status == (2 if error.startswith("mdssd: error: ") else 0)
    return error.removeprefix("mdssd: error: ").strip() if status else ""


@pytest.mark.parametrize(
    "made, reason",
    [
        ({"train_folder": "images/treen"}, "train: no such folder or list, 'images/treen'"),
        ({"train_folder": "3"}, "none of the splits trainval, train (there are: val; or all)"),
        ({"train": ""}, "has no box to learn from"),
        ({"train": None}, "none of the 4 images has a label file; expected, for images/train/0"),
        # Less than 5% of the boxes of both splits.
        ({"train": BOX + "0 3 3 3 3\n", "train_images": 3, "val_images": 70}, "3 of 6 boxes (50%)"),
    ],
)
def test_data_that_training_refuses(tmp_path, capsys, made, reason):
    root = yolo(tmp_path / "v", **made)
    assert reason in refusal(capsys, root)
    status, line = verdict(capsys, root)
    assert status == 1 and line.startswith("verdict: to be repaired first. ") and reason in line
    # Boxes that cannot be used are left out on request; data without any stay useless.
    allowed = verdict(capsys, root, "--allow-faults")[0]
    assert allowed == (0 if "50%" in reason else 1)
    assert verdict(capsys, root, "--split", "val") == (0, "verdict: can be used")


def test_data_that_evaluation_refuses(tmp_path, capsys):
    """Less than 5% of the boxes of both splits."""
    root = yolo(tmp_path / "v", train_images=70, val=BOX + "0 3 3 3 3\n", val_images=3)
    assert refusal(capsys, root, "--batch-size", "2") == ""
    status, line = verdict(capsys, root)
    assert status == 1
    assert "`mdssd eval` would refuse the split val: v val: 3 of 6 boxes (50%)" in line
    assert verdict(capsys, root, "--allow-faults")[0] == 0


def test_a_single_list_of_an_unusual_name_is_trained_on(tmp_path, capsys):
    root = tmp_path / "v"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/default.txt").write_text("a\n")
    cv2.imwrite(str(root / "JPEGImages/a.png"), np.zeros((60, 80, 3), np.uint8))
    (root / "Annotations/a.xml").write_text(
        "<annotation><object><name>ant</name><bndbox><xmin>5</xmin><ymin>5</ymin>"
        "<xmax>60</xmax><ymax>50</ymax></bndbox></object></annotation>"
    )
    assert verdict(capsys, root) == (0, "verdict: can be used")
    (root / "ImageSets/Main/default.txt").rename(root / "ImageSets/Main/test.txt")
    status, line = verdict(capsys, root)
    assert status == 1 and "none of the splits trainval, train (there are: test; or all)" in line
