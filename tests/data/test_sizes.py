"""Which pixels boxes refer to: sizes and EXIF orientation, for VOC folders and COCO files."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mdssd.data import CocoDataset, VOCDataset, read_image
from mdssd.data.images import ImageHeader, ImageLimits
from mdssd.data.photos import PhotoDataset
from mdssd.data.sizes import place

BOX = [40, 10, 70, 30]


def photo(path, orientation, size=(80, 60), box=BOX):
    """Write a picture that is dark but for a box, and stored so that EXIF turns it to `size`."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    back = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarter turns to the left
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, back))).save(path, exif=exif, quality=95)


def voc(folder, stated, **options):
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    size = f"<width>{stated[0]}</width><height>{stated[1]}</height>" if stated else ""
    sides = "".join(
        f"<{name}>{value}</{name}>"
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
    )
    (folder / "Annotations/a.xml").write_text(
        f"<annotation><size>{size}</size><object><name>x</name><bndbox>{sides}</bndbox></object>"
        "</annotation>"
    )
    return VOCDataset(folder, "all", **options)


def coco(folder, stated, **options):
    x1, y1, x2, y2 = BOX
    image = {"id": 1, "file_name": "JPEGImages/a.jpg"}
    image |= dict(zip(("width", "height"), stated, strict=True)) if stated else {}
    content = {
        "images": [image],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return CocoDataset(folder / "set.json", **options)


def lies_on_its_object(sample):
    x1, y1, x2, y2 = sample.boxes_xyxy[0].astype(int)
    return sample.image[y1:y2, x1:x2].mean() > 250 and sample.image.mean() < 60


@pytest.mark.parametrize("read", [voc, coco])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("stated", [(80, 60), None])
def test_boxes_lie_on_their_objects_as_tools_show_them(tmp_path, read, orientation, stated):
    photo(tmp_path / "JPEGImages/a.jpg", orientation)
    data = read(tmp_path, stated)
    assert data.upright(0) == (orientation != 1) and lies_on_its_object(data[0])
    assert not data.size_faults and len(data.notes) == (orientation != 1)
    if orientation == 6:
        assert "the image (a.jpg) is stored as 60 x 80 and EXIF turns it" in data.notes[0]
        assert ("to the stated 80 x 60" in data.notes[0]) == (stated is not None)


@pytest.mark.parametrize("read", [voc, coco])
def test_boxes_in_the_pixels_as_stored(tmp_path, read):
    """The stated size is that of the stored pixels: some tools ignore EXIF."""
    photo(tmp_path / "JPEGImages/a.jpg", 6, (60, 80), [10, 10, 30, 40])
    assert Image.open(tmp_path / "JPEGImages/a.jpg").size == (80, 60)
    data = read(tmp_path, (80, 60))
    assert not data.upright(0) and not data.size_faults and len(data.notes) == 1
    assert "EXIF turns it by 90 degrees; the stated size is that of the stored" in data.notes[0]
    # What is shown at (10, 10) to (30, 40) of 60 x 80 is stored at (10, 30) to (40, 50).
    assert data[0].image[32:48, 12:38].mean() > 250 and data[0].image.shape == (60, 80, 3)


@pytest.mark.parametrize("read", [voc, coco])
def test_boxes_are_compared_with_the_size_of_the_file(tmp_path, read):
    photo(tmp_path / "JPEGImages/a.jpg", 1)
    data = read(tmp_path, (30, 20))  # the box would lie outside
    assert len(data.annotation(0).labels) == 1 and not data.dropped
    assert len(data.size_faults) == 1
    assert data.size_faults[0].endswith("states 30 x 20, the image (a.jpg) is 80 x 60")


def test_a_square_cannot_tell_whether_it_is_turned():
    result = place(ImageHeader(50, 50, 6, "JPEG"), (50, 50), "a.jpg", "a.xml")
    assert result.upright and result.fault is None and "taken as if they do" in result.note
    result = place(ImageHeader(50, 40, 6, "JPEG"), (7, 8), "a.jpg", "a.xml")
    assert result.size == (40, 50) and result.upright
    assert result.fault == "a.xml: states 7 x 8, the image (a.jpg) is 40 x 50"


@pytest.mark.parametrize("read", [voc, coco])
@pytest.mark.parametrize("stated", [(60, 80), (80, 60), None])
@pytest.mark.parametrize("orientation", [3, 6])
def test_one_option_decides_for_all_images(tmp_path, read, stated, orientation):
    path = tmp_path / "JPEGImages/a.jpg"
    photo(path, orientation)
    upright = read(tmp_path, stated, orientation="upright")
    assert upright.upright(0) and lies_on_its_object(upright[0])
    stored = read(tmp_path, stated, orientation="stored")
    assert not stored.upright(0)
    np.testing.assert_array_equal(stored[0].image, read_image(path))


def test_a_choice_against_the_stated_size_is_noted():
    header = ImageHeader(80, 60, 6, "JPEG")
    place_as = partial(place, header, image="a.jpg", where="a.xml")
    upright = place_as((80, 60), orientation="upright")
    assert upright[:3] == ((60, 80), True, None)
    assert upright.note == (
        "a.xml: the image (a.jpg) is stored as 80 x 60 and EXIF turns it by 90 degrees; the stated "
        "size is that of the stored image, but upright was chosen for all"
    )
    stored = place_as((60, 80), orientation="stored")
    assert stored[:3] == ((80, 60), False, None) and "the turned image, but stored" in stored.note
    for stated, choice in (((60, 80), "upright"), ((80, 60), "stored"), (None, "stored")):
        assert place_as(stated, orientation=choice).note is None
    assert place_as((7, 8), orientation="stored").fault.endswith("the image (a.jpg) is 80 x 60")


def test_without_a_stated_size_the_habit_of_the_format_decides():
    header = ImageHeader(80, 60, 6, "JPEG")
    result = place(header, None, "a.jpg", "a.txt", shown_upright=False)
    assert result[:2] == ((80, 60), False) and result.note.endswith("taken as if they do not")
    assert place(header, (60, 80), "a.jpg", "a.txt", shown_upright=False)[:2] == ((60, 80), True)
    with pytest.raises(ValueError, match="orientation: expected one of auto, upright, stored, got"):
        PhotoDataset("photos", orientation="up")


def test_images_of_too_many_pixels_are_refused_by_their_header(tmp_path):
    photo(tmp_path / "JPEGImages/a.jpg", 1)
    voc(tmp_path, (80, 60))
    faults = []
    assert not len(VOCDataset(tmp_path, "all", faults=faults, limits=ImageLimits(max_pixels=4000)))
    assert len(faults) == 1 and "has 80 x 60 pixels, expected at most 4,000" in faults[0]
