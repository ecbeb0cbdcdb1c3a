"""YOLO labels: what is recognised, which images and labels belong together, splits and classes."""

import pytest
from yolo_files import BOX, BOX_XYXY, pair, photo, two_splits, write

from mdssd.data import DataError, open_dataset
from mdssd.inspection.leaks import find_leaks


def test_a_data_yaml(tmp_path):
    dataset = open_dataset(two_splits(tmp_path / "roads"))
    assert dataset.classes == ["car", "bus"]
    assert dataset.image_ids == ["images/train/a", "images/train/b"]
    assert dataset[0].boxes_xyxy.tolist() == [BOX_XYXY]
    assert dataset[1].boxes_xyxy.tolist() == [BOX_XYXY, [0, 0, 40, 30]]
    assert dataset[1].labels.tolist() == [2, 1]
    assert (dataset.name, dataset.split) == ("roads train", "train")
    assert dataset.format == "YOLO labels (data.yaml)"
    assert (list(dataset.dropped), list(dataset.notes)) == ([], [])


def test_the_file_is_as_good_as_its_folder(tmp_path):
    two_splits(tmp_path)
    dataset = open_dataset(tmp_path / "data.yaml", train=False)
    assert (dataset.image_ids, dataset.split) == (["images/val/c"], "val")


def test_all_splits_together_know_their_images(tmp_path):
    dataset = open_dataset(two_splits(tmp_path), "all")
    assert dataset.image_ids == ["images/train/a", "images/train/b", "images/val/c"]
    (lists,) = dataset.split_lists([])
    assert lists.listed == {"train": dataset.image_ids[:2], "val": dataset.image_ids[2:]}


def test_an_unknown_split_lists_those_there_are(tmp_path):
    with pytest.raises(DataError, match=r"no such split tset \(there are: train, val; or all\)"):
        open_dataset(two_splits(tmp_path), "tset")


def test_a_data_yaml_in_a_folder_of_the_folder(tmp_path):
    two_splits(tmp_path / "roads")
    assert open_dataset(tmp_path).image_ids == ["images/train/a", "images/train/b"]


def test_one_of_several_descriptions(tmp_path):
    two_splits(tmp_path)
    write(tmp_path / "small.yaml", "train: images/val\nnames: [car]\n")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2
    assert f"{tmp_path / 'data.yaml'}: taken, not {tmp_path / 'small.yaml'}" in dataset.notes
    (tmp_path / "data.yaml").rename(tmp_path / "large.yaml")
    with pytest.raises(DataError, match=r"more than one description .*large.yaml, .*small.yaml"):
        open_dataset(tmp_path)


def test_images_and_labels_without_a_description(tmp_path):
    two_splits(tmp_path, yaml=None)
    dataset = open_dataset(tmp_path)
    assert dataset.format == "YOLO labels (images/ and labels/)"
    assert dataset.image_ids == ["images/train/a", "images/train/b"]
    assert dataset.classes == ["0", "1"]
    assert any("the class numbers are taken as names" in line for line in dataset.notes)
    assert open_dataset(tmp_path, "val").classes == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "car\r\nbus\r\n"),
        ("obj.names", "car\nbus\n\n"),
        ("notes.json", '{"categories": [{"id": 0, "name": "car"}, {"id": 1, "name": "bus"}]}'),
        ("data.yaml", "names: [car, bus]\nnc: 2\n"),
    ],
)
def test_images_and_labels_with_names(tmp_path, name, content):
    pair(tmp_path, "", "a", "1 0.5 0.5 0.25 0.5")
    write(tmp_path / name, content)
    dataset = open_dataset(tmp_path)
    assert (dataset.classes, dataset[0].labels.tolist()) == (["car", "bus"], [2])
    assert dataset.split == "all"


def test_split_folders_with_images_and_labels(tmp_path):
    for split in ("train", "valid"):
        photo(tmp_path / split / "images" / f"{split}.png")
        write(tmp_path / split / "labels" / f"{split}.txt", BOX)
    dataset = open_dataset(tmp_path, train=False)
    assert (dataset.image_ids, dataset.split) == (["valid/images/valid"], "valid")


def test_labels_beside_the_images(tmp_path):
    photo(tmp_path / "a.png")
    write(tmp_path / "a.txt", BOX)
    write(tmp_path / "classes.txt", "car\n")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "YOLO labels (labels beside the images)"
    assert (dataset.image_ids, dataset.classes) == (["a"], ["car"])
    assert list(dataset.notes) == []


def test_class_lists_that_contradict_each_other(tmp_path):
    for split, names in (("train", "car\nbus\n"), ("val", "bus\ncar\n")):
        photo(tmp_path / split / "a.png")
        write(tmp_path / split / "a.txt", BOX)
        write(tmp_path / split / "classes.txt", names)
    with pytest.raises(DataError, match="gives the class numbers other names than"):
        open_dataset(tmp_path)
    write(tmp_path / "val" / "classes.txt", "car\nbus\nvan\n")
    assert open_dataset(tmp_path).classes == ["car", "bus", "van"]


def test_a_folder_with_other_labels_is_not_taken_for_yolo(tmp_path):
    photo(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", "a note on this photograph\n")
    with pytest.raises(DataError, match="no data set was recognised; found images/, labels/"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("beside", [True, False])
def test_darknet(tmp_path, beside):
    folder = "obj" if beside else "images"
    for name in ("a", "b"):
        photo(tmp_path / "data" / folder / f"{name}.png")
        write(tmp_path / "data" / ("obj" if beside else "labels") / f"{name}.txt", BOX)
    write(tmp_path / "data" / "obj.names", "car\nbus\n")
    write(tmp_path / "data" / "train.txt", f"data/{folder}/a.png\n")
    write(tmp_path / "data" / "valid.txt", f"data/{folder}/b.png\r\n")
    write(
        tmp_path / "data" / "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\n"
        "names = data/obj.names\nbackup = backup/\n",
    )
    for path in (tmp_path, tmp_path / "data", tmp_path / "data" / "obj.data"):
        dataset = open_dataset(path)
        assert (dataset.classes, dataset.image_ids) == (["car", "bus"], [f"{folder}/a"])
        assert dataset.format == "YOLO labels (darknet, obj.data)"
        assert open_dataset(path, train=False).image_ids == [f"{folder}/b"]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("names = gone.names", r"obj\.data:3: names: no such file, 'gone\.names'"),
        ("train = gone.txt", r"obj\.data:3: train: no such list, 'gone\.txt'"),
    ],
)
def test_the_line_of_darknet_that_names_nothing(tmp_path, line, reason):
    pair(tmp_path, "train", "a")
    write(tmp_path / "obj.data", f"classes = 1\nbackup = b\n{line}\n")
    with pytest.raises(DataError, match=reason):
        open_dataset(tmp_path)


@pytest.mark.parametrize("entry", ['{"id": 1}', '{"id": "x", "name": "a"}', "3", '{"id": -1}'])
def test_the_entry_of_notes_json_that_is_no_class(tmp_path, entry):
    pair(tmp_path, "train", "a")
    write(tmp_path / "notes.json", f'{{"categories": [{{"id": 0, "name": "car"}}, {entry}]}}')
    with pytest.raises(DataError, match=r"notes\.json: categories\[1\]: expected an id from 0"):
        open_dataset(tmp_path)


def test_an_image_without_labels_is_background(tmp_path):
    two_splits(tmp_path)
    pair(tmp_path, "train", "empty", "\n")
    pair(tmp_path, "train", "none", None)
    dataset = open_dataset(tmp_path)
    assert [len(dataset[k].labels) for k in range(4)] == [1, 2, 0, 0]
    assert list(dataset.notes) == [
        f"{tmp_path}: 1 of 4 images have no label file and are background, such as "
        "images/train/none.png"
    ]


def test_no_labels_at_all(tmp_path):
    pair(tmp_path, "train", "a", None)
    write(tmp_path / "data.yaml", "train: images/train\nnames: [car]\n")
    expected = "none of the 1 images has a label file; expected, for images/train/a.png, labels/"
    with pytest.raises(DataError, match=expected):
        open_dataset(tmp_path)


def test_no_labels_at_all_for_a_submission(tmp_path):
    two_splits(tmp_path)
    pair(tmp_path, "test", "d", None)
    write(tmp_path / "data.yaml", "test: images/test\nnames: [car]\n")
    dataset = open_dataset(tmp_path, "test", unlabelled=True)
    assert (len(dataset), dataset.labelled) == (1, False)
    assert len(dataset[0].labels) == 0


def test_an_export_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        photo(tmp_path / split / "images" / f"{split}.png")
        write(tmp_path / split / "labels" / f"{split}.txt", BOX)
    write(
        tmp_path / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\n"
        "names: ['car']\n\nroboflow:\n  workspace: me\n  version: 1\n",
    )
    write(tmp_path / "README.roboflow.txt", "Exported from Roboflow\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.image_ids, dataset.classes) == (["train/images/train"], ["car"])
    assert list(dataset.notes) == [
        f"{tmp_path / 'data.yaml'}: train: '../train/images' is taken as {tmp_path}/train/images",
        f"{tmp_path / 'data.yaml'}: val: '../valid/images' is taken as {tmp_path}/valid/images",
        f"{tmp_path / 'data.yaml'}:3: test: no such folder or list, '../test/images'; left out",
    ]


def test_an_export_of_cvat(tmp_path):
    pair(tmp_path, "train", "a")
    write(tmp_path / "train.txt", "data/images/train/a.png\n")
    write(tmp_path / "data.yaml", "names:\n  0: car\npath: .\ntrain: train.txt\n")
    dataset = open_dataset(tmp_path)
    assert dataset[0].boxes_xyxy.tolist() == [BOX_XYXY]
    assert list(dataset.notes) == [
        f"{tmp_path / 'train.txt'}: 1 path found by the last parts, such as "
        "'data/images/train/a.png' is images/train/a.png"
    ]


def test_labels_beside_images_in_a_folder_called_images(tmp_path):
    photo(tmp_path / "images" / "a.png")
    write(tmp_path / "images" / "a.txt", BOX)
    write(tmp_path / "data.yaml", "train: images\nnames: [car]\n")
    assert open_dataset(tmp_path)[0].boxes_xyxy.tolist() == [BOX_XYXY]


def test_only_the_last_folder_images_has_a_parallel_one(tmp_path):
    photo(tmp_path / "images" / "day1" / "images" / "a.png")
    write(tmp_path / "images" / "day1" / "labels" / "a.txt", BOX)
    write(tmp_path / "data.yaml", "train: images\nnames: [car]\n")
    assert len(open_dataset(tmp_path)[0].labels) == 1


def test_labels_without_an_image_are_named(tmp_path):
    two_splits(tmp_path)
    write(tmp_path / "labels" / "train" / "lost.txt", BOX)
    write(tmp_path / "labels" / "train" / "classes.txt", "car\nbus\n")
    write(tmp_path / "labels" / "train.cache", b"\x80\x04")
    assert list(open_dataset(tmp_path).notes) == [
        f"{tmp_path / 'labels' / 'train' / 'lost.txt'}: a label file without an image; not used"
    ]


def test_images_of_no_split_are_counted(tmp_path):
    two_splits(tmp_path)
    pair(tmp_path, "more", "d")
    assert (
        f"{tmp_path}: 1 image in no split, such as images/more/d.png; not used, with 1 label file"
        in open_dataset(tmp_path).notes
    )


def test_labels_of_images_in_no_list_have_their_images(tmp_path):
    two_splits(tmp_path, "train: train.txt\nval: images/val\nnames: [car, bus]\n")
    write(tmp_path / "train.txt", "images/train/a.png\n")
    pair(tmp_path, "train", "bare", None)
    assert list(open_dataset(tmp_path).notes) == [
        f"{tmp_path}: 2 images in no split, such as images/train/b.png; "
        "not used, with 1 label file",
        f"{tmp_path}: no box has the class bus",
    ]


def test_two_images_of_one_stem_are_named(tmp_path):
    two_splits(tmp_path)
    photo(tmp_path / "images" / "train" / "a.bmp")
    with pytest.raises(DataError, match=r"a\.bmp and .*a\.png have the same name without") as info:
        open_dataset(tmp_path)
    assert "labels/train/a.txt" in str(info.value)
    faults = []
    assert len(open_dataset(tmp_path, faults=faults)) == 2
    assert len(faults) == 1


def test_an_image_of_two_splits_is_a_leak(tmp_path):
    two_splits(tmp_path, "train: images\nval: images/val\nnames: [car, bus]\n")
    dataset = open_dataset(tmp_path, "all")
    assert len(dataset) == 3
    lists = dataset.split_lists([])
    assert find_leaks(lists, [0, 1, 2], dataset.image_ids, []) == [
        f"{tmp_path}: images/val/c is in train and val"
    ]


def test_linked_folders_are_followed(tmp_path):
    two_splits(tmp_path / "store")
    root = tmp_path / "roads"
    root.mkdir()
    for name in ("images", "labels"):
        (root / name).symlink_to(tmp_path / "store" / name)
    write(root / "data.yaml", "train: images/train\nnames: [car, bus]\n")
    dataset = open_dataset(root)
    assert dataset.image_ids == ["images/train/a", "images/train/b"]
    assert len(dataset[1].labels) == 2


def test_the_exif_orientation_is_applied(tmp_path):
    import numpy as np
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "images" / "a.jpg", exif=exif)
    write(tmp_path / "labels" / "a.txt", BOX)
    dataset = open_dataset(tmp_path)
    assert dataset.upright(0)
    assert dataset[0].image.shape == (80, 60, 3)
    assert dataset[0].boxes_xyxy.tolist() == [[22.5, 20, 37.5, 60]]


def test_an_unreadable_label_file_is_a_fault(tmp_path):
    two_splits(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    (tmp_path / "labels" / "train" / "a.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"labels/train/a\.txt: cannot be read \(No such file"):
        open_dataset(tmp_path)
    faults = []
    assert open_dataset(tmp_path, faults=faults).image_ids == ["images/train/b"]
    assert len(faults) == 1


def test_a_damaged_image_is_a_fault(tmp_path):
    two_splits(tmp_path)
    write(tmp_path / "images" / "train" / "a.png", b"no image")
    with pytest.raises(DataError, match=r"images/train/a\.png: is not an image"):
        open_dataset(tmp_path)


def test_chosen_classes(tmp_path):
    dataset = open_dataset(two_splits(tmp_path), classes=["bus"])
    assert (dataset.classes, dataset[1].labels.tolist()) == (["bus"], [1])


def test_a_folder_that_also_holds_a_coco_file(tmp_path):
    two_splits(tmp_path)
    image = '{"id": 1, "file_name": "images/train/a.png", "width": 80, "height": 60}'
    box = '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}'
    names = '{"id": 1, "name": "car"}'
    write(
        tmp_path / "train.json",
        f'{{"images": [{image}], "annotations": [{box}], "categories": [{names}]}}',
    )
    assert open_dataset(tmp_path, "train").format.startswith("COCO")
    assert open_dataset(tmp_path / "data.yaml", "train").format == "YOLO labels (data.yaml)"
