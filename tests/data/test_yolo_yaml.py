"""data.yaml: class names, the paths of the splits, and what is refused."""

import os

import pytest
from yolo_files import BOX, pair, photo, two_splits, write

from mdssd.data import DataError, open_dataset


def opened(root, yaml, **options):
    """Return the data set and its notes, without the folder."""
    dataset = open_dataset(two_splits(root, yaml), **options)
    return dataset, [note.replace(f"{root}{os.sep}", "") for note in dataset.notes]


def expect_error(root, yaml, match):
    with pytest.raises(DataError, match=match):
        open_dataset(two_splits(root, yaml))


TRAIN = "train: images/train\nnames: [car, bus]\n"


@pytest.mark.parametrize(
    "names",
    [
        "[car, bus]",
        "{0: car, 1: bus}",
        "\n  0: car\n  1: bus",
        "\n- car\n- bus",
        "{'1': bus, '0': car}",
    ],
)
def test_names(tmp_path, names):
    dataset, notes = opened(tmp_path, f"train: images/train\nval: images/val\nnames: {names}\n")
    assert (dataset.classes, notes) == (["car", "bus"], [])


def test_names_stay_as_they_are_written(tmp_path):
    dataset, _ = opened(tmp_path, "train: images\nnames: [no, 1e3]\n")
    assert dataset.classes == ["no", "1e3"]


def test_a_gap_in_the_names(tmp_path):
    dataset, notes = opened(tmp_path, "train: images/train\nnames: {0: car, 2: van}\n")
    assert dataset.classes == ["car", "van"]
    where = tmp_path / "labels" / "train" / "b.txt"
    assert dataset.dropped == [f"{where}:1: class 1 has no name in {tmp_path / 'data.yaml'}"]
    assert "data.yaml: no name is given for class 1" in notes


def test_two_numbers_of_one_name(tmp_path):
    dataset, notes = opened(tmp_path, "train: images/train\nnames: [car, car]\n")
    assert (dataset.classes, dataset[1].labels.tolist()) == (["car"], [1, 1])
    assert "data.yaml: classes 0 and 1 are both called 'car'; taken as one class" in notes


def test_a_number_of_classes_that_is_not_that_of_the_names(tmp_path):
    dataset, notes = opened(tmp_path, f"nc: 80\n{TRAIN}")
    assert dataset.classes == ["car", "bus"]
    assert "data.yaml: nc is 80, but names has 2; the names count" in notes


def test_no_names(tmp_path):
    dataset, notes = opened(tmp_path, "train: images/train\nnc: 2\n")
    assert dataset.classes == ["0", "1"]
    assert any("no class names" in note for note in notes)


@pytest.mark.parametrize("path", ["", ".", "./", "~"])
def test_a_path_that_is_the_folder_itself(tmp_path, path):
    yaml = f"path: {path}\n{TRAIN}val: images/val\n"
    assert opened(tmp_path / "roads", yaml)[1] == []


@pytest.mark.parametrize("path", ["/kaggle/working/roads", "roads"])
def test_a_path_whose_end_is_the_folder(tmp_path, path):
    yaml = f"path: {path}\n{TRAIN}val: images/val\n"
    root = tmp_path / "roads"
    assert opened(root, yaml)[1] == [f"data.yaml: path: '{path}' is taken as {root}"]


@pytest.mark.parametrize("path", ["/kaggle/working/x", "x", "C:\\data\\x", "../datasets/x"])
def test_a_path_that_is_not_there(tmp_path, path):
    dataset, notes = opened(tmp_path, f"path: {path}\n{TRAIN}val: images/val\n")
    assert len(dataset) == 2
    expected = "is not on this machine; taken as the folder of data.yaml"
    assert notes == [f"data.yaml: path: {path!r} {expected}"]


def test_a_path_in_the_folder_of_data_sets(tmp_path):
    two_splits(tmp_path / "datasets" / "roads", yaml=None)
    write(tmp_path / "roads.yaml", f"path: roads\n{TRAIN}")
    dataset = open_dataset(tmp_path / "roads.yaml")
    assert dataset.image_ids == ["images/train/a", "images/train/b"]
    expected = f"roads.yaml: path: 'roads' is taken as {tmp_path / 'datasets' / 'roads'}"
    assert f"{tmp_path}/{expected}" in dataset.notes


def test_an_absolute_path_of_this_machine(tmp_path):
    yaml = f"path: {tmp_path / 'roads'}\n{TRAIN}val: images/val\n"
    assert opened(tmp_path / "roads", yaml)[1] == []


@pytest.mark.parametrize(
    "entry",
    ["../images/train", "..\\images\\train", "/content/roads/images/train", "C:\\d\\images\\train"],
)
def test_an_entry_of_another_place(tmp_path, entry):
    dataset, notes = opened(tmp_path, f"train: {entry}\nnames: [car, bus]\n")
    assert len(dataset) == 2
    taken = [note for note in notes if "is taken as" in note]
    assert len(taken) == 1 and taken[0].endswith("is taken as images/train")


def test_a_list_of_folders(tmp_path):
    pair(tmp_path, "day2", "d")
    yaml = "train: [images/train, images/day2]\nnames: [car, bus]\n"
    assert len(opened(tmp_path, yaml)[0]) == 3
    write(tmp_path / "data.yaml", "train: [images/train, images/day3]\nnames: [car, bus]\n")
    with pytest.raises(DataError, match=r"train: no such folder or list, 'images/day3'"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "line",
    ["images/train/a.png", "./images/train/a.png", "images\\train\\a.png", "IMAGES/train/A.PNG"],
)
def test_a_list_of_images(tmp_path, line):
    write(tmp_path / "train.txt", f"\ufeff{line}\r\n\r\n")
    dataset, notes = opened(tmp_path, "train: train.txt\nnames: [car, bus]\n")
    assert dataset.image_ids == ["images/train/a"]
    assert not [note for note in notes if "last parts" in note]


def test_a_list_with_paths_of_another_machine(tmp_path):
    write(tmp_path / "sets" / "train.txt", "/data/x/images/train/a.png\n../images/train/b.png\n")
    dataset, notes = opened(tmp_path, "train: sets/train.txt\nnames: [car, bus]\n")
    assert dataset.image_ids == ["images/train/a", "images/train/b"]
    line = "sets/train.txt: 1 path found by the last parts, such as '/data/x/images/train/a.png' is"
    assert f"{line} images/train/a.png" in notes


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("images/train/x.png", r"no such image, 'images/train/x\.png', in "),
        ("../../etc/a.png", r"'\.\./\.\./etc/a\.png' leaves the folder|leaves the folder"),
        ("/etc/passwd", r"'/etc/passwd' is not the name of an image"),
    ],
)
def test_a_line_of_a_list_that_cannot_be_used(tmp_path, line, reason):
    write(tmp_path / "train.txt", f"images/train/a.png\n{line}\n")
    yaml = "train: train.txt\nnames: [car, bus]\n"
    expect_error(tmp_path, yaml, rf"train\.txt:2: .*({reason})")
    faults = []
    assert len(open_dataset(tmp_path, faults=faults)) == 1
    assert len(faults) == 1


def test_a_split_that_is_not_there(tmp_path):
    yaml = "train: images/train\nval: images/val\ntest: ../test/images\nnames: [car, bus]\n"
    _, notes = opened(tmp_path, yaml)
    assert notes == ["data.yaml:3: test: no such folder or list, '../test/images'; left out"]
    with pytest.raises(DataError, match=r"data\.yaml:3: test: no such folder or list"):
        open_dataset(tmp_path, "test")


def test_no_split_is_there(tmp_path):
    expect_error(tmp_path, "train: imgs/train\nnames: [car]\n", r"no such folder or list, 'imgs")


def test_a_split_without_images(tmp_path):
    (tmp_path / "images" / "more").mkdir(parents=True)
    yaml = "train: images/more\nnames: [car]\n"
    expect_error(tmp_path, yaml, r"data\.yaml: found no image in .*images/more")


def test_a_place_outside_the_folder_is_refused(tmp_path):
    two_splits(tmp_path / "datasets" / "roads", yaml=None)
    folder = tmp_path / "yaml"
    write(folder / "roads.yaml", f"path: ../datasets/roads\n{TRAIN}")
    with pytest.raises(DataError) as info:
        open_dataset(folder)
    assert str(info.value) == (
        f"{folder / 'roads.yaml'}: path: '../datasets/roads' leads to {tmp_path}/datasets/roads, "
        f"which is outside {folder}; move roads.yaml into the folder that holds the images, or "
        f"give the folder above, {tmp_path}, in place of {folder}"
    )
    assert len(open_dataset(tmp_path)) == 2  # the remedy of the message


def test_a_split_outside_the_folder_is_refused(tmp_path):
    photo(tmp_path / "private" / "images" / "x.png")
    yaml = f"train: {tmp_path / 'private' / 'images'}\nnames: [car]\n"
    write(tmp_path / "roads" / "data.yaml", yaml)
    with pytest.raises(DataError, match=r"train: .* leads to .*private/images, which is outside"):
        open_dataset(tmp_path / "roads")


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("names: [car\ntrain: x\n", r"data\.yaml:2: expected ',' or ']'"),
        ("names: [car]\ntrain: &a x\nval: *a\n", r"data\.yaml:3: has the alias \*a, expected the"),
        ("names: {0: a, 0: b}\ntrain: images\n", r"data\.yaml:1: has a key that occurs twice"),
        ("names: {car: 0}\ntrain: images\n", r"data\.yaml:1: names: 'car' is not the number"),
        ("train: images\nnames:\n  0: car\n  -1: bus\n", r"data\.yaml:4: names: '-1' is not the"),
        ("train: images\nnames:\n- car\n- ''\n", r"data\.yaml:4: names: class 1: '' is not a name"),
        ("train: images\nnames:\n- car\n- []\n", r"data\.yaml: names: class 1: \[\] is not a name"),
        (
            "names: [[car]]\ntrain: images\n",
            r"data\.yaml:1: names: class 0: \['car'\] is not a name",
        ),
        (
            "names: car\ntrain: images\n",
            r"data\.yaml:1: names: expected a list or a mapping, found 'car'",
        ),
        ("names: [car]\ntrain: {a: b}\n", r"data\.yaml:2: train: expected a folder, a list of"),
        ("names: [car]\ntrain: x\npath: [a]\n", r"path: expected a folder, found \['a'\]"),
        (
            "names: [car]\ntrain: x\nkpt_shape: 17\n",
            r"data\.yaml:3: kpt_shape: expected two numbers, found '17'",
        ),
    ],
)
def test_a_yaml_that_cannot_be_used(tmp_path, yaml, reason):
    expect_error(tmp_path, yaml, reason)


def test_a_yaml_bomb_is_refused(tmp_path):
    rows = [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ]
    yaml = "\n".join(["train: images", "names: *h", 'a: &a ["x"]', *rows])
    expect_error(tmp_path, yaml, r"data\.yaml:2: has the alias \*h")
    expect_error(tmp_path, "train: x\nnames: " + "[" * 100_000, "is nested too deeply")
    expect_error(tmp_path, "train: x\nnames: 1\n" + "#" * (1 << 20), r"at most 1\.05 MB")


def test_nothing_in_a_yaml_is_run(tmp_path):
    code = f"open({str(tmp_path / 'made')!r}, 'w')"
    yaml = f'{TRAIN}download: |\n  {code}\nextra: !!python/object/apply:os.system ["touch x"]\n'
    assert len(opened(tmp_path, yaml)[0]) == 2
    assert not (tmp_path / "made").exists()


def test_key_points_of_a_yaml(tmp_path):
    pair(tmp_path, "train", "a", "0 0.5 0.5 0.25 0.5 0.4 0.4 0.6 0.6\n")
    write(tmp_path / "data.yaml", f"kpt_shape: [2, 2]\n{TRAIN}")
    assert open_dataset(tmp_path)[0].boxes_xyxy.tolist() == [[30, 15, 50, 45]]


def test_polygons_are_noted_once(tmp_path):
    for name in ("a", "b"):
        pair(tmp_path, "train", name, "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    write(tmp_path / "data.yaml", TRAIN)
    (note,) = [note for note in open_dataset(tmp_path).notes if "bounding box" in note]
    assert note == (
        f"{tmp_path}/labels/train/a.txt:1: a polygon; its bounding box is taken (polygons: 2)"
    )


def test_another_yaml_is_not_taken_for_a_description(tmp_path):
    photo(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", BOX)
    write(tmp_path / "settings.yaml", "name: x\nepochs: 3\n")
    assert open_dataset(tmp_path).format == "YOLO labels (images/ and labels/)"
