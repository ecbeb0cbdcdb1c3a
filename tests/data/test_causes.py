"""What cannot be used, or is not what it seems, is named with its cause."""

import pytest
from test_as_tools_write import made, png, write
from test_hugging_face import BOX, TWO, pa, parquet, picture, table

from mdssd.data import DataError, open_dataset


def test_a_csv_file_without_a_good_row(tmp_path):
    made(tmp_path, "csv", row="{}.png,a,20,30,40,car")
    with pytest.raises(DataError, match=r"first fault: .*boxes.csv:2: x1 is 'a', expected a num"):
        open_dataset(tmp_path)


def test_a_table_without_the_columns_of_the_first(tmp_path):
    parquet(tmp_path / "train-0.parquet", table(TWO))
    parquet(tmp_path / "train-1.parquet", table(TWO).select(["image"]))
    with pytest.raises(DataError, match="train-1.parquet: has no column 'objects', which the fi"):
        open_dataset(tmp_path)
    faults = []
    assert len(open_dataset(tmp_path, faults=faults)) == 2 and len(faults) == 1
    parquet(tmp_path / "train-1.parquet", pa.table({"objects": table([[(BOX, 0)]])["objects"]}))
    with pytest.raises(DataError, match="train-1.parquet: has no column 'image'"):
        open_dataset(tmp_path)
    images = [{"bytes": picture(), "path": None}]
    flat = pa.table({"image": images, "bbox": [[BOX]], "label": [["car"]]})
    parquet(tmp_path / "train-0.parquet", flat)
    parquet(tmp_path / "train-1.parquet", flat.drop_columns(["label"]))
    with pytest.raises(DataError, match="train-1.parquet: has no column 'label'"):
        open_dataset(tmp_path)


def test_an_image_in_the_place_of_a_list(tmp_path):
    made(tmp_path, "yolo")
    write(tmp_path / "data.yaml", "train: images/train/a.png\nnames: [car]\n")
    with pytest.raises(DataError, match="a.png: is an image, expected a folder or a list of im"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", ["", "- a\n", "\0\0"])
def test_a_data_yaml_that_says_nothing(tmp_path, content):
    made(tmp_path, "yolo")
    write(tmp_path / "data.yaml", content)
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ["0"]
    assert f"{tmp_path}/data.yaml: names no splits and no classes; not read" in dataset.notes


def test_an_annotation_of_labelme_that_names_an_image_which_is_not_there(tmp_path):
    made(tmp_path, "labelme", ["a"])
    path = tmp_path / "a.json"
    content = path.read_text()
    for name in ("b.png", "../../b.png", "/home/b.png"):
        path.write_text(content.replace("a.png", name))
        [note] = open_dataset(tmp_path).notes
        assert note == f"{path}: names '{name}', which is not there; a.png is used"
    for name in ("a.png", "../photos/A.png", "C:\\\\photos\\\\a.png"):
        path.write_text(content.replace("a.png", name))
        assert not open_dataset(tmp_path).notes
    write(tmp_path / "b.png", png())
    path.write_text(content.replace("a.png", "b.png"))
    assert open_dataset(tmp_path).image_path(0).name == "b.png"
