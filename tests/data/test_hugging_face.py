"""Hugging Face data sets: saved to disk and Parquet, forms of boxes, class names, and faults."""

import json
import pickle
import re

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from mdssd.data import DataError, TrainingSet, open_dataset, write_voc
from mdssd.data.augment import Augmentation
from mdssd.data.faults import without_damaged
from mdssd.data.hugging_face import is_hugging_face
from mdssd.data.images import ImageLimits

pa = pytest.importorskip("pyarrow", reason="pyarrow reads the tables")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the tables")

BOX = [10.0, 20.0, 20.5, 20.0]  # x, y, width, height
BOX_XYXY = [10, 20, 30.5, 40]
WIDE = [50.0, 30.0, 25.0, 20.0]  # no corners: 25 is less than 50


def picture(width=80, height=60):
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def features(objects_as_list=False, bbox="bbox", names=("car", "bus")):
    label = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "string"}
    inner = {bbox: {"feature": {"dtype": "float32"}, "length": 4, "_type": "List"}}
    if objects_as_list:
        objects = {"feature": {**inner, "category": label}, "_type": "List"}
    else:
        objects = {
            bbox: {"feature": inner[bbox], "_type": "List"},
            "category": {"feature": label, "_type": "List"},
        }
    return {"image": {"_type": "Image"}, "objects": objects}


def table(rows, *, as_list=False, bbox="bbox", names=("car", "bus"), images=None, described=True):
    """Return a table of rows, each a list of (box, class)."""
    images = images or [{"bytes": picture(), "path": None}] * len(rows)
    objects = [
        [{bbox: box, "category": label} for box, label in row]
        if as_list
        else {bbox: [box for box, _ in row], "category": [label for _, label in row]}
        for row in rows
    ]
    made = pa.table({"image": images, "objects": objects})
    info = json.dumps({"info": {"features": features(as_list, bbox, names)}})
    return made.replace_schema_metadata({"huggingface": info}) if described else made


def saved(folder, made, split=None):
    """Write a table as `save_to_disk` does."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(str(folder / name), made.schema) as stream:
        stream.write_table(made)
    state = {"_data_files": [{"filename": name}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def parquet(path, made, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **options)
    return path


TWO = [[(BOX, 0), (WIDE, 1)], []]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("kind", ["saved", "parquet", "file"])
def test_a_data_set(tmp_path, kind, as_list):
    made = table(TWO, as_list=as_list)
    path = tmp_path
    if kind == "saved":
        saved(tmp_path, made)
    else:
        path = parquet(tmp_path / "some.parquet", made)
    dataset = open_dataset(path if kind == "file" else tmp_path)
    assert dataset.classes == ["car", "bus"] and len(dataset) == 2
    assert dataset.format.startswith("Hugging Face data set (")
    assert dataset[0].image.shape == (60, 80, 3) and dataset.image_path(0) is None
    assert dataset[0].boxes_xyxy.tolist() == [BOX_XYXY, [50, 30, 75, 50]]
    assert dataset[0].labels.tolist() == [1, 2] and not len(dataset[1].labels)
    assert "taken as x, y, width, height in pixels: of 2 boxes, 0 do not fit" in dataset.notes[0]
    with pytest.raises(DataError, match="no such split val"):
        open_dataset(path, "val")


def test_splits_of_a_saved_data_set(tmp_path):
    saved(tmp_path / "train", table(TWO), "train")
    saved(tmp_path / "validation", table([[(BOX, 1)]]), "validation")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    dataset = open_dataset(tmp_path)
    assert dataset.split == "train" and len(dataset) == 2
    test = open_dataset(tmp_path, train=False)
    assert test.split == "val" and test[0].labels.tolist() == [2]
    assert len(open_dataset(tmp_path, "all")) == 3


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
    ],
)
def test_splits_of_parquet_files(tmp_path, train, test):
    parquet(tmp_path / train, table(TWO))
    parquet(tmp_path / test, table([[(BOX, 1)]]))
    assert len(open_dataset(tmp_path)) == 2
    assert open_dataset(tmp_path, train=False)[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("bbox", "box", "note"),
    [
        ("bbox", [40.0, 30.0, 70.0, 50.0], "two corners in pixels"),
        ("bbox_xyxy", [40.0, 30.0, 70.0, 50.0], ""),
        ("bbox_xywh", [40.0, 30.0, 30.0, 20.0], ""),
        ("bbox", [0.5, 0.5, 0.375, 0.333333333], "x, y, width, height in fractions"),
        ("bbox_cxcywh", [0.6875, 0.66666667, 0.375, 0.33333333], "fractions"),
    ],
)
def test_forms_of_boxes(tmp_path, bbox, box, note):
    path = parquet(tmp_path / "a.parquet", table([[(box, 0)]], bbox=bbox))
    dataset = open_dataset(path, classes=["car"])
    assert np.allclose(dataset[0].boxes_xyxy, [[40, 30, 70, 50]], atol=1e-3)
    assert note in "".join(dataset.notes) and bool(note) == bool(dataset.notes)


def test_class_names_that_are_not_declared(tmp_path):
    made = table([[(WIDE, "car")], [(WIDE, "bus")]], described=False)
    assert open_dataset(parquet(tmp_path / "a.parquet", made)).classes == ["bus", "car"]
    made = table([[(WIDE, 10)], [(WIDE, 9)]], described=False)
    dataset = open_dataset(parquet(tmp_path / "b.parquet", made))
    assert dataset.classes == ["9", "10"]
    assert any("class numbers are taken as names" in note for note in dataset.notes)


def test_images_as_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    for k, name in enumerate(("images/a.png", "/home/me/images/a.png", "../a.png", "b.png")):
        made = table([[(WIDE, 0)]], names=("car",), images=[{"bytes": None, "path": name}])
        path = parquet(tmp_path / f"{k}.parquet", made)
        if k < 2:
            assert open_dataset(path)[0].image.shape == (60, 80, 3)
        else:
            with pytest.raises(DataError, match=f"{k}.parquet: row 0: no image .* save_to_disk"):
                open_dataset(path)


def test_rows_that_cannot_be_used(tmp_path):
    rows = [[(WIDE, 0), (WIDE, 7), ([1.0, 2.0], 0), ([1.0, 2.0, np.nan, 3.0], 1)], [(WIDE, 1)]]
    images = [{"bytes": picture(), "path": None}, {"bytes": b"no image", "path": None}]
    path = parquet(tmp_path / "a.parquet", table(rows, images=images))
    with pytest.raises(DataError, match="a.parquet: row 1"):
        open_dataset(path)
    faults = []
    dataset = open_dataset(path, faults=faults)
    assert len(dataset) == 1 and len(dataset[0].labels) == 1 and len(faults) == 1
    where = f"{path}: row 0: objects"
    assert sorted(dataset.dropped) == [
        f"{where}[1]: category is 7, expected 0 to 1",
        f"{where}[2]: bbox is [1.0, 2.0], expected four numbers",
        f"{where}[3]: box (1, 2, nan, 5) is not finite",
    ]


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_objects_that_are_null_are_said(tmp_path, kind, inner):
    null = {"bbox": None, "category": None} if inner else None
    objects = [{"bbox": [BOX], "category": [0]}, null, {"bbox": [], "category": []}, null]
    made = pa.table({"image": [{"bytes": picture(), "path": None}] * 4, "objects": objects})
    path = (saved if kind == "saved" else parquet)(tmp_path / "a.parquet", made)
    dataset = open_dataset(path)
    name = "bbox" if inner else "objects"
    told = f"row 1: {name} is null; taken as an image without objects (and 1 more time)"
    assert len(dataset) == 4 and [n.partition(": ")[2] for n in dataset.notes].count(told) == 1


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_damaged_files(tmp_path, ending):
    if ending == "parquet":
        path = parquet(tmp_path / "a.parquet", table(TWO))
    else:
        path = saved(tmp_path, table(TWO)) / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:100])
    assert is_hugging_face(tmp_path)
    with pytest.raises(DataError, match=f"{path.name}: cannot be read, is it complete"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read, is it complete?"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer (`git lfs pull` g"),
    ],
)
def test_a_split_whose_file_is_damaged_is_not_taken_for_missing(tmp_path, content, reason):
    parquet(tmp_path / "data" / "test.parquet", table(TWO))
    (tmp_path / "data" / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"train.parquet: {reason}")):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, train=False)) == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("state.json", '{"_data_files": [{"filename": "../a.arrow"}]}', "leaves the folder"),
        ("state.json", '{"_data_files": [', "broken JSON"),
        ("state.json", "{}", "names no file"),
        ("dataset_dict.json", '{"splits": ["../x"]}', "leaves the folder"),
        ("dataset_dict.json", '{"splits": 5}', "has no list 'splits'"),
    ],
)
def test_broken_descriptions(tmp_path, name, content, reason):
    saved(tmp_path, table(TWO))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason) as error:
        open_dataset(tmp_path)
    assert str(tmp_path / name) in str(error.value)


def test_columns_that_are_missing(tmp_path):
    path = parquet(tmp_path / "a.parquet", pa.table({"text": ["a"]}))
    with pytest.raises(DataError, match="no column of images, expected 'image'; it has text"):
        open_dataset(path)
    path = parquet(tmp_path / "b.parquet", pa.table({"image": [picture()], "label": [1]}))
    with pytest.raises(DataError, match=r"no boxes \('bbox'\) in its columns"):
        open_dataset(path)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_row_groups_and_workers(tmp_path, kind):
    sizes = [(64 + k, 48) for k in range(12)]
    images = [{"bytes": picture(*size), "path": None} for size in sizes]
    made = table([[([4.0, 4.0, 40.0, 40.0], 0)]] * 12, images=images)
    if kind == "saved":
        saved(tmp_path, made)
    else:
        parquet(tmp_path / "a.parquet", made, row_group_size=2)
    dataset = open_dataset(tmp_path)
    for k in (11, 0, 5, 11, 6):
        assert dataset[k].image.shape == (48, 64 + k, 3)
    again = pickle.loads(pickle.dumps(dataset))
    assert (again[3].image == dataset[3].image).all()
    samples = TrainingSet(dataset, Augmentation(64), 1)
    loader = DataLoader(samples, None, num_workers=2)
    assert [image.shape[-1] for image, *_ in loader] == [64] * 12


def test_a_damaged_image_and_the_bytes_of_a_good_one(tmp_path):
    damaged = picture()[:-30]  # its header is whole
    images = [{"bytes": data, "path": None} for data in (picture(), damaged)]
    parquet(tmp_path / "train.parquet", table([[(BOX, 0)], [(BOX, 1)]], images=images))
    dataset = open_dataset(tmp_path)
    assert dataset.image_bytes(0) == picture()
    faults = []
    assert without_damaged(dataset, faults).image_ids == dataset.image_ids[:1]
    assert len(faults) == 1 and "damaged" in faults[0]
    out = write_voc(without_damaged(dataset, []), tmp_path / "voc", "train")
    written = sorted((out / "JPEGImages").iterdir())
    assert [path.read_bytes() for path in written] == [picture()]


def test_an_image_in_a_table_is_not_read_by_windows(tmp_path):
    data = cv2.imencode(".tif", np.zeros((60, 80, 3), np.uint8))[1].tobytes()
    made = table([[(BOX, 0)]], images=[{"bytes": data, "path": None}])
    saved(tmp_path / "d", made)
    with pytest.raises(DataError, match="has 80 x 60 pixels, expected at most 1,000"):
        open_dataset(tmp_path / "d", limits=ImageLimits(max_pixels=1000, by_windows=True))
