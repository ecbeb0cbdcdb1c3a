"""Reading images of the usual formats, and the messages about files that cannot be read."""

import os

import cv2
import numpy as np
import pytest

from mdssd.data import DataError, decode_image, read_image
from mdssd.data.images import path_inside, read_size


def picture(height=40, width=60):
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (200, 30, 10)
    image[height // 2 :, width // 2 :] = (0, 90, 180)
    return image


def encode(image_rgb, suffix, *options):
    ok, data = cv2.imencode(suffix, image_rgb[..., ::-1], list(options))
    assert ok
    return data.tobytes()


def noisy_jpeg(*options):
    rng = np.random.default_rng(0)
    return encode(rng.integers(0, 256, (64, 64, 3), np.uint8), ".jpg", *options)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_lossless_kinds_come_back_as_rgb(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(picture(), suffix))
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_kinds_come_back_nearly(suffix):
    image = decode_image(encode(picture(), suffix))
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    assert np.abs(image[5, 5].astype(int) - (200, 30, 10)).max() < 12


def test_grey_16_bit_and_alpha():
    grey = np.arange(240, dtype=np.uint8).reshape(12, 20)
    from_grey = decode_image(cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(from_grey, np.repeat(grey[:, :, None], 3, 2))
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(cv2.imencode(".png", deep)[1].tobytes()), from_grey)
    alpha = np.dstack([picture()[..., ::-1], np.full((40, 60), 7, np.uint8)])
    data = cv2.imencode(".png", alpha)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), picture())


def with_exif(jpeg, payload):
    segment = b"Exif\x00\x00" + payload
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def test_exif_orientation_is_not_applied():
    # One directory entry: tag 0x0112 (orientation), type short, count 1, value 6 (turn right).
    tiff = (
        b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
        + bytes(4)
    )
    data = with_exif(encode(picture(), ".jpg"), tiff)
    turned = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape == (60, 40, 3), "the made EXIF block must be one that OpenCV obeys"
    assert decode_image(data).shape == (40, 60, 3)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_truncated_jpeg_is_named_wherever_it_is_cut(tmp_path, options):
    whole = noisy_jpeg(*options)
    assert decode_image(whole).shape == (64, 64, 3)
    path = tmp_path / "cut.jpg"
    for length in [*range(2, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
            read_image(path)


def test_end_marker_of_a_thumbnail_does_not_count():
    thumbnail = encode(picture(8, 8), ".jpg")
    whole = with_exif(noisy_jpeg(), thumbnail)
    assert decode_image(whole).shape == (64, 64, 3)
    with pytest.raises(DataError, match="truncated"):
        decode_image(whole[: len(whole) // 2 + len(thumbnail) // 2])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    np.testing.assert_array_equal(
        decode_image(noisy_jpeg() + b"\x00" * 50), decode_image(noisy_jpeg())
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_truncated_other_kinds(suffix):
    whole = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), suffix)
    for length in (len(whole) // 2, len(whole) - 5):
        with pytest.raises(DataError, match="a.x: the image is truncated"):
            decode_image(whole[:length], "a.x")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"these are words, not pixels\n" * 20, "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "truncated"),
        (b"\xff\xd8\xff\xd9", "not an image|cannot be decoded"),
    ],
)
def test_no_image(tmp_path, content, reason):
    path = tmp_path / "fake.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"fake\.jpg: .*({reason})"):
        read_image(path)


def test_missing_image_and_folder(tmp_path):
    with pytest.raises(DataError, match="gone.png: cannot be read"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


def test_size_from_the_head_of_the_file(tmp_path):
    kinds = {
        "a.png": encode(picture(), ".png"),
        "b.jpg": encode(picture(), ".jpg"),
        "c.jpg": encode(picture(), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "d.jpg": with_exif(encode(picture(), ".jpg"), b"\x00" * 60000),
    }
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        assert read_size(tmp_path / name) == (60, 40)
    (tmp_path / "e.bmp").write_bytes(encode(picture(), ".bmp"))
    assert read_size(tmp_path / "e.bmp") is None
    with pytest.raises(DataError, match="gone"):
        read_size(tmp_path / "gone.jpg")


def test_names_that_leave_the_folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "inside-out").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.symlink(folder / "sub", folder / "alias")
    for name in (
        "../secret.png",
        "sub/../../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "../inside-out/a.png",
        "..",
        "",
        "a\0b.png",
    ):
        with pytest.raises(DataError, match="list.txt: .*(leaves the folder|not a file name)"):
            path_inside(folder, name, "list.txt")
    for name in ("a.png", "sub/a.png", "sub/../a.png", "alias/a.png"):
        assert path_inside(folder, name, "list.txt") == folder / name
