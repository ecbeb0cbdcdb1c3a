"""Names of splits that come from the data, in the names of the files that are written."""

import cv2
import numpy as np
import pytest

from mdssd.data import open_dataset, write_coco, write_voc, write_yolo

NAMES = ["../x", "..", "a/b", "con", "x" * 300, "day 1", "path", "names", "all", "DAY_1", ".hidden"]


@pytest.fixture
def tables(tmp_path):
    """Return a data set of an image in each of these splits, and of one in train."""
    root = tmp_path / "a" / "b" / "source"
    root.mkdir(parents=True)
    rows = ["path,x1,y1,x2,y2,class,split"]
    for k, name in enumerate([*NAMES, "train"]):
        cv2.imwrite(str(root / f"{k}.png"), np.full((60, 80, 3), 90, np.uint8))
        rows.append(f"{k}.png,10,20,30,40,car,{name}")
    (root / "boxes.csv").write_text("\n".join(rows))
    return open_dataset(root, "all")


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_voc])
def test_a_split_cannot_leave_the_folder_or_lose_its_images(tables, tmp_path, write):
    losses = []
    out = tmp_path / "a" / "b" / "out"
    write(tables, out, None, losses=losses)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "source"]
    assert [path.name for path in out.parent.parent.iterdir()] == ["b"]
    back = open_dataset(out, "all")
    assert len(back) == len(NAMES) + 1
    assert all(back.annotation(k).boxes_xyxy.tolist() == [[10, 20, 30, 40]] for k in range(12))
    if write is write_voc:
        names = {path.stem for path in (out / "ImageSets" / "Main").iterdir()}
    else:
        [lists] = back.split_lists([])
        assert sorted(map(len, lists.listed.values())) == [1] * 12
        names = {*lists.listed}
    assert len(names) == 12  # two that differ in case would be one file on some systems
    assert {"_.._x", "a_b", "_con", "day_1_2", "split_path", "split_all", "train"} <= names
    text = "\n".join(losses)
    assert "1 image of the split '../x': written as _.._x; the name is not safe" in text
    assert text.count("the name is not safe") == len(NAMES) - 1  # of DAY_1


def test_other_keys_of_a_data_yaml_that_name_images(tmp_path):
    for name in ("train", "night"):
        for folder, ending, data in (("images", "png", b""), ("labels", "txt", b"0 .5 .5 .1 .1")):
            path = tmp_path / folder / name / f"a.{ending}"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        cv2.imwrite(str(tmp_path / "images" / name / "a.png"), np.full((60, 80, 3), 90, np.uint8))
    text = "train: images/train\nnight: images/night\nnames: [car]\nweights: best.pt\n"
    (tmp_path / "data.yaml").write_text(f"{text}other: images/none\nout: ../images/x\n")
    dataset = open_dataset(tmp_path, "all")
    assert dataset.image_ids == ["images/train/a", "images/night/a"]
    assert open_dataset(tmp_path).split == "train"
    assert open_dataset(tmp_path, "night").image_ids == ["images/night/a"]
