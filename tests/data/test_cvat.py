"""CVAT for images: shapes, subsets, where the images are, and hostile XML."""

import cv2
import numpy as np
import pytest

from mdssd.data import DataError, cvat_xml, open_dataset
from mdssd.data.cvat import is_cvat
from mdssd.data.cvat_xml import CvatFile

HEAD = """<meta><task><id>3</id><name>roads</name>{subset}<labels>
<label><name>car</name><color>#f00</color><type>any</type><attributes>
<attribute><name>difficult</name></attribute></attributes></label>
<label><name>big bus</name><type>rectangle</type></label>
<label><name>face</name><type>skeleton</type></label>
<label><name>nose</name><type>points</type><parent>face</parent></label>
</labels></task></meta>"""
BOX = '<box label="car" occluded="0" xtl="10" ytl="20" xbr="30.5" ybr="40" z_order="0"></box>'


def image(name, shapes=BOX, number=0, **attributes):
    extra = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<image id="{number}" name="{name}" width="80" height="60"{extra}>{shapes}</image>'


def xml(*images, head=HEAD, subset=""):
    head = head.replace("{subset}", subset)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>\n'
        f"{head}\n" + "\n".join(images) + "</annotations>\n"
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((60, 80, 3), np.uint8))


def opened(folder, *shapes, **options):
    """Open a folder with one image that has these shapes."""
    write(folder / "annotations.xml", xml(image("a.png", "\n" + "\n".join(shapes))))
    photos(folder / "images", "a.png")
    return open_dataset(folder, **options)


def test_a_task(tmp_path):
    write(tmp_path / "annotations.xml", xml(image("a.png"), image("day 1/b.png", "")))
    photos(tmp_path / "images", "a.png", "day 1/b.png")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "CVAT for images (annotations.xml)" and dataset.split is None
    assert dataset.classes == ["car", "big bus"]  # a skeleton and its points have no boxes
    assert dataset.image_ids == ["images/a", "images/day 1/b"]
    assert dataset[0].boxes_xyxy.tolist() == [[10, 20, 30.5, 40]]
    assert dataset[0].labels.tolist() == [1] and len(dataset[1].labels) == 0
    assert not dataset.dropped and not dataset.size_faults
    assert dataset.notes == [f"{tmp_path}: no box has the class big bus"]
    assert open_dataset(tmp_path / "annotations.xml").image_ids == dataset.image_ids
    assert open_dataset(tmp_path, "all", train=False).image_ids == dataset.image_ids
    with pytest.raises(DataError, match="no such split val .there are: none; or all"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize(
    "shape, box",
    [
        ('<polygon label="car" points="1,2;5,2;4,9.5"/>', [1, 2, 5, 9.5]),
        ('<mask label="car" rle="1,2" left="3" top="4" width="10" height="20"/>', [3, 4, 13, 24]),
        ('<ellipse label="car" cx="20" cy="30" rx="5" ry="10"/>', [15, 20, 25, 40]),
        ('<ellipse label="car" cx="20" cy="30" rx="5" ry="10" rotation="90"/>', [10, 25, 30, 35]),
        (
            '<box label="car" xtl="10" ytl="20" xbr="30" ybr="24" rotation="90.0"/>',
            [18, 12, 22, 32],
        ),
        (
            '<box label="car" xtl="10" ytl="20" xbr="20" ybr="30" rotation="45"/>',
            [15 - 50**0.5, 25 - 50**0.5, 15 + 50**0.5, 25 + 50**0.5],
        ),
        (
            '<cuboid label="car" xtl1="1" ytl1="2" xbl1="1" ybl1="9" xtr1="5" ytr1="2" xbr1="5" '
            'ybr1="9" xtl2="4" ytl2="1" xbl2="4" ybl2="8" xtr2="8" ytr2="1" xbr2="8" ybr2="8"/>',
            [1, 1, 8, 9],
        ),
    ],
)
def test_shapes_become_boxes_with_a_note(tmp_path, shape, box):
    dataset = opened(tmp_path, shape)
    np.testing.assert_allclose(dataset[0].boxes_xyxy, [box], rtol=1e-6)
    kind = shape[1:].split()[0]
    assert dataset.notes[-1].startswith(f"{tmp_path}/annotations.xml:11: <{kind}> is ")


@pytest.mark.parametrize(
    "shape",
    [
        '<points label="car" points="1,2;3,4"/>',
        '<polyline label="car" points="1,2;3,4"/>',
        '<tag label="car"/>',
        '<skeleton label="face"><points label="nose" points="1,2"/></skeleton>',
    ],
)
def test_shapes_without_a_box_are_counted(tmp_path, shape):
    dataset = opened(tmp_path, BOX, shape, shape)
    kind = shape[1:].split()[0]
    assert len(dataset[0].labels) == 1 and not dataset.dropped
    assert dataset.notes[-1] == (
        f"{tmp_path}/annotations.xml:12: <{kind}> has no box; left out (and 1 more time)"
    )


@pytest.mark.parametrize(
    "shape, reason",
    [
        ('<box label="car" xtl="a" ytl="2" xbr="3" ybr="4"/>', "xtl is 'a', expected a number"),
        ('<box label="car" xtl="1" ytl="2" xbr="3"/>', "ybr is missing, expected a number"),
        ('<box label="car" xtl="NaN" ytl="2" xbr="9" ybr="9"/>', "is not finite"),
        ('<box label="car" xtl="9" ytl="2" xbr="3" ybr="4"/>', "has no area"),
        ('<box label=" " xtl="1" ytl="2" xbr="3" ybr="4"/>', "label is ' ', expected a name"),
        ('<polygon label="car" points="1,2;3"/>', "points is '1,2;3', expected x,y;x,y;x,y"),
        ('<polygon label="car" points="1,2;3,4;NaN,9"/>', "is not finite"),
        ('<star label="car"/>', "<star> is unknown"),
        ('<box label="car" xtl="1" ytl="2" xbr="9" ybr="9" rotation="inf"/>', "rotation is 'inf'"),
    ],
)
def test_a_shape_that_cannot_be_used_is_named(tmp_path, shape, reason):
    dataset = opened(tmp_path, BOX, shape)
    assert len(dataset.dropped) == 1 and len(dataset[0].labels) == 1
    assert dataset.dropped[0].startswith(f"{tmp_path}/annotations.xml:12: ")
    assert reason in dataset.dropped[0]


def test_a_label_that_is_not_declared_is_told(tmp_path):
    plane = BOX.replace("car", "plane")
    dataset = opened(tmp_path, BOX, plane, plane)
    assert dataset.classes == ["car", "big bus", "plane"]
    where = f"{tmp_path / 'annotations.xml'}:12"
    told = f"{where}: the label 'plane' is not declared in <labels>; taken as a class"
    assert told in dataset.notes
    assert told not in opened(tmp_path, BOX, plane, classes=["car"]).notes
    write(tmp_path / "annotations.xml", xml(image("a.png", plane), head=""))
    assert open_dataset(tmp_path).notes == []


def test_attributes(tmp_path):
    def box(name, value):
        return BOX.replace("></box>", f'><attribute name="{name}">{value}</attribute></box>')

    boxes = [box("Difficult", "true"), box("is_crowd", "1"), box("colour", "red"), BOX]
    dataset = opened(tmp_path, *boxes, box("difficult", "perhaps"))
    assert dataset[0].difficult.tolist() == [True, False, False, False, False]
    assert dataset[0].crowd.tolist() == [False, True, False, False, False]
    assert "difficult is 'perhaps', expected true or false" in dataset.notes[-1]


def test_subsets_are_splits(tmp_path):
    subsets = {"a": "Train", "b": "Validation", "c": "default"}
    images = [image(f"{name}.png", subset=subset) for name, subset in subsets.items()]
    write(tmp_path / "annotations.xml", xml(*images))
    for name, subset in subsets.items():
        photos(tmp_path / "images" / subset, f"{name}.png")
    train = open_dataset(tmp_path)
    assert (train.split, train.image_ids) == ("train", ["images/Train/a"])
    assert open_dataset(tmp_path, train=False).image_ids == ["images/Validation/b"]
    assert open_dataset(tmp_path, "default").image_ids == ["images/default/c"]
    everything = open_dataset(tmp_path, "all")
    assert {name: len(ids) for name, ids in everything.split_lists([])[0].listed.items()} == {
        "train": 1,
        "val": 1,
        "default": 1,
    }


def test_the_subset_of_a_task_and_folders_of_splits(tmp_path):
    for split, subset in (("train", "<subset>Train</subset>"), ("test", "")):
        write(tmp_path / split / "annotations.xml", xml(image("a.png"), subset=subset))
        photos(tmp_path / split / "images", "a.png")
    assert open_dataset(tmp_path).image_ids == ["train/images/a"]
    test = open_dataset(tmp_path, train=False)
    assert (test.split, test.image_ids) == ("test", ["test/images/a"])
    assert len(open_dataset(tmp_path, "all")) == 2


def test_frames_of_a_video_are_named_without_their_ending(tmp_path):
    write(tmp_path / "annotations.xml", xml(image("frame_000000")))
    photos(tmp_path / "images", "frame_000000.png")
    assert open_dataset(tmp_path).image_path(0) == tmp_path / "images" / "frame_000000.png"


def test_two_images_of_one_stem(tmp_path):
    write(tmp_path / "annotations.xml", xml(image("a.png"), image("a.bmp", "")))
    photos(tmp_path, "a.png", "a.bmp")
    dataset = open_dataset(tmp_path)
    assert sorted(dataset.image_ids) == ["a", "a.bmp"] or sorted(dataset.image_ids) == [
        "a",
        "a.png",
    ]


def test_images_beside_the_file_and_one_that_is_not_listed(tmp_path):
    write(tmp_path / "annotations.xml", xml(image("a.PNG")))
    photos(tmp_path, "a.png", "b.png")
    dataset = open_dataset(tmp_path)
    assert dataset.image_path(0) == tmp_path / "a.png"
    assert "1 image without an annotation left out" in dataset.notes[-1]


def test_an_image_that_is_listed_twice(tmp_path):
    other = BOX.replace('"car"', '"bus"')
    write(tmp_path / "annotations.xml", xml(image("a.png"), image("a.png", BOX + other)))
    photos(tmp_path, "a.png")
    dataset = open_dataset(tmp_path)
    labels = [dataset.classes[label - 1] for label in dataset[0].labels]
    assert (len(dataset), labels, dataset.dropped) == (1, ["car", "bus"], [])
    (note,) = (line for line in dataset.notes if "added" in line)
    assert "annotations.xml:11: image 'a.png': 1 box added to those of " in note
    assert "annotations.xml:10: image 'a.png', which is the same image" in note


@pytest.mark.parametrize(
    "bad, reason",
    [
        (
            image("gone.png"),
            "gone.png: no such image .*annotations.xml:10: image 'gone.png' names it",
        ),
        (image("../a.png"), "'../a.png' leaves the folder"),
        (
            '<image id="7">' + BOX + "</image>",
            "image with id '7': has no name, expected a file",
        ),
    ],
)
def test_an_image_that_cannot_be_used(tmp_path, bad, reason):
    root = tmp_path / "data"
    photos(tmp_path, "a.png")
    photos(root, "b.png")
    write(root / "annotations.xml", xml(bad, image("b.png")))
    with pytest.raises(DataError, match=reason):
        open_dataset(root)
    faults: list[str] = []
    assert open_dataset(root, faults=faults).image_ids == ["b"] and len(faults) == 1


ATTRIBUTE = '<attribute name="{}">x</attribute>'
LAUGHS = (
    '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>'
    '<annotations><image name="&c;"></image></annotations>'
)


@pytest.mark.parametrize(
    "text, reason",
    [
        (xml(image("a.png"))[:-40], "broken XML .unclosed token: line 10, .*where the file ends"),
        (xml(image("a.png")).replace("</box>", ""), r"broken XML \(mismatched tag: line 10"),
        (
            xml('<track id="0" label="car"></track>'),
            "line 10: <track> is of the format CVAT for video.*expected CVAT for images 1.1",
        ),
        (LAUGHS, "refused, it declares a DTD or entities"),
        (xml(), "lists no image"),
        ("<annotations>" + "<a>" * 100, "line 1: the elements are nested too deep"),
        (
            xml(image("a.png", "<box>" + "".join(ATTRIBUTE.format(k) for k in range(1001)))),
            "line 10: has more than 1,000 attributes",
        ),
        (xml(image("a.png", "<tag/>" * 20_001)), "line 10: an image has more than 20,000 shapes"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, reason):
    photos(tmp_path, "a.png")
    write(tmp_path / "annotations.xml", text)
    with pytest.raises(DataError, match=f"annotations.xml: {reason}"):
        open_dataset(tmp_path)


def test_memory_does_not_grow_with_what_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(cvat_xml, "_MAX_ELEMENT", 200_000)
    junk = "<junk><a/></junk>" * 40_000
    write(
        tmp_path / "annotations.xml", xml(image("a.png")).replace("<version>", f"{junk}<version>")
    )
    assert len(list(CvatFile(tmp_path / "annotations.xml").images())) == 1
    write(tmp_path / "annotations.xml", xml(image("a" * 300_000)))
    with pytest.raises(DataError, match="has an element of more than 200 kB"):
        list(CvatFile(tmp_path / "annotations.xml").images())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_windows_line_ends(tmp_path, encoding):
    text = xml(image("é.png")).replace("\n", "\r\n").replace("utf-8", encoding[:6].rstrip("-"))
    write(tmp_path / "annotations.xml", text.encode(encoding))
    photos(tmp_path, "é.png")
    assert open_dataset(tmp_path)[0].boxes_xyxy.tolist() == [[10, 20, 30.5, 40]]


def test_what_is_recognised(tmp_path):
    assert not is_cvat(tmp_path) and not is_cvat(tmp_path / "missing")
    write(tmp_path / "a.xml", "<annotation><object/></annotation>")
    assert not is_cvat(tmp_path)
    (tmp_path / "b.xml").symlink_to("/dev/zero")
    (tmp_path / "c.xml").mkdir()
    assert not is_cvat(tmp_path)
    write(tmp_path / "default.xml", xml())
    assert is_cvat(tmp_path) and is_cvat(tmp_path / "default.xml")


def test_chosen_classes(tmp_path):
    dataset = opened(tmp_path, BOX, BOX.replace("car", "tram"), classes=["tram"])
    assert dataset.classes == ["tram"] and len(dataset[0].labels) == 1
    assert open_dataset(tmp_path).classes == ["car", "big bus", "tram"]
