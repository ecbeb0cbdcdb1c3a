"""Reading images of the usual formats, and the messages about files that cannot be read."""

import io
import os
import re
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mdssd.data import DataError, decode_image, read_image
from mdssd.data.image_headers import MORE_PAGES, parse_header
from mdssd.data.images import ImageLimits, from_pillow, read_header


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


# How a picture is stored for each EXIF orientation, so that it stands upright when turned.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, form, orientation):
    stored = np.ascontiguousarray(STORED[orientation](picture(48, 96)))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a"
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True}
    Image.fromarray(stored).save(path, form, exif=exif, **options)
    header = read_header(path)
    assert header == (*stored.shape[1::-1], orientation, form, "")
    assert header.size(upright=True) == (96, 48)
    for upright, expected in ((True, picture(48, 96)), (False, stored)):
        image = read_image(path, upright=upright)
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).max() <= 3
        reduced = decode_image(path.read_bytes(), "a", 4, upright=upright)
        assert reduced.shape == (expected.shape[0] // 4, expected.shape[1] // 4, 3)
        middle = expected[2::4, 2::4].astype(int)
        assert np.median(np.abs(reduced - middle)) <= 3


@pytest.mark.parametrize("exif", [b"", b"II", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\xff"])
def test_exif_that_is_cut_short_turns_nothing(exif):
    data = with_exif(encode(picture(), ".jpg"), exif)
    assert decode_image(data, upright=True).shape == (40, 60, 3)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize("reduction", [1, 4])
def test_a_jpeg_with_a_cut_or_a_hole_is_named_as_damaged(options, reduction):
    # The decoder fills what is missing with grey and makes a picture of the full size.
    whole = noisy_jpeg(*options)
    middle = len(whole) // 2
    cut = whole[:middle] + b"\xff\xd9"
    hole = whole[: middle - 500] + bytes(1000) + whole[middle + 500 :]
    for data in (cut, hole):
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
        with pytest.raises(DataError, match=r"^a\.jpg: the image is damaged \(Corrupt JPEG data"):
            decode_image(data, "a.jpg", reduction)
        image = decode_image(data, "a.jpg", reduction, limits=ImageLimits(accept_damage=True))
        assert image.shape == (64 // reduction, 64 // reduction, 3)


def test_a_jpeg_is_decoded_to_the_bits_of_opencv():
    # Also with colours that are subsampled in a rare way, which only OpenCV decodes.
    normal = noisy_jpeg()
    frame = normal.index(b"\xff\xc0")
    rare = bytearray(noisy_jpeg(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111))
    rare[rare.index(b"\xff\xc0") + 11] = 0x31
    assert normal[frame + 11] == 0x22
    for data in (normal, bytes(rare), noisy_jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)):
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(decode_image(data), expected)


def test_harmless_warnings_of_libjpeg_are_no_damage():
    jpeg = noisy_jpeg()
    assert jpeg[6:11] == b"JFIF\0"
    newer = jpeg[:11] + b"\x02" + jpeg[12:]  # a version of the format that libjpeg does not know
    np.testing.assert_array_equal(decode_image(newer), decode_image(jpeg))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2"])
def test_16_bit_pixels_are_scaled_by_the_bits_that_they_use(tmp_path, bits, suffix):
    level = np.linspace(0, 255, 600).astype(np.uint16).reshape(20, 30)
    level[0, 0] = 255
    stored = level << (bits - 8) | level >> max(0, 16 - bits)
    grey = tmp_path / f"grey{suffix}"
    Image.fromarray(stored).save(grey)
    np.testing.assert_array_equal(read_image(grey), np.repeat(level[..., None], 3, 2))
    if suffix != ".jp2":
        colour = np.stack([stored, stored[::-1], stored[:, ::-1]], 2)
        image = decode_image(cv2.imencode(suffix, colour[..., ::-1])[1].tobytes())
        np.testing.assert_array_equal(image, np.stack([level, level[::-1], level[:, ::-1]], 2))


def tiff(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF")
    return file.getvalue()


def test_floating_point_pixels_and_whole_numbers_of_32_bits():
    level = np.arange(240, dtype=np.uint8).reshape(12, 20)
    expected = np.repeat(level[..., None], 3, 2)
    for pixels in (level.astype(np.float32), (level / 255).astype(np.float32), level.astype("i4")):
        if pixels.max() < 1:
            pixels[0, 0] = 0
        np.testing.assert_array_equal(decode_image(tiff(pixels)), expected)
    for number, shown in ((-1, "-1 to 239"), (256.5, "0 to 256.5"), (np.nan, "nan to nan")):
        pixels = level.astype(np.float32)
        pixels[0, 1] = number
        with pytest.raises(DataError, match=f"a: its pixels are floating-point numbers .* {shown}"):
            decode_image(tiff(pixels), "a")
    with pytest.raises(DataError, match="a: its pixels are numbers from 0 to 70000, expected 0 to"):
        decode_image(tiff(np.array([[0, 70000]], np.int32)), "a")


@pytest.mark.parametrize("form", ["GIF", "AVIF", "JPEG2000", "TIFF", "PPM", "WEBP", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_the_usual_formats_in_their_modes(form, mode):
    image = Image.fromarray(picture(64, 64)).convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, form)
    except (OSError, ValueError):
        pytest.skip(f"Pillow does not write {mode} as {form}")
    pixels = decode_image(file.getvalue())
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert np.median(np.abs(pixels - expected), axis=(0, 1)).max() <= 20
    with pytest.raises(DataError, match="a.x: .*(trunc|damaged)"):
        decode_image(file.getvalue()[: len(file.getvalue()) // 2], "a.x")


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "AVIF"])
def test_the_first_of_several_pages_or_frames_is_read(form):
    pages = [Image.fromarray(picture(64, 64)), Image.new("RGB", (64, 64), (0, 255, 0))]
    file = io.BytesIO()
    pages[0].save(file, form, save_all=True, append_images=pages[1:])
    image = decode_image(file.getvalue())
    assert np.abs(image[8, 8].astype(int) - (200, 30, 10)).max() < 12


def png_header(width, height):
    data = bytearray(encode(np.zeros((1, 1, 3), np.uint8), ".png"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


def test_too_many_pixels_are_refused_by_the_header(tmp_path):
    jpeg = bytearray(noisy_jpeg())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (65500).to_bytes(2, "big") + (16000).to_bytes(2, "big")
    bmp = bytearray(encode(picture(), ".bmp"))
    bmp[18:26] = (30000).to_bytes(4, "little") + (30000).to_bytes(4, "little")
    huge = {"a.png": png_header(100_000, 100_000), "a.jpg": bytes(jpeg), "a.bmp": bytes(bmp)}
    for name, data in huge.items():
        (tmp_path / name).write_bytes(data)
        for read in (lambda name=name: read_image(tmp_path / name), lambda d=data: decode_image(d)):
            with pytest.raises(
                DataError, match=r"has [\d,]+ x [\d,]+ pixels, expected at most 100,"
            ):
                read()
    limits = ImageLimits(max_pixels=2400)
    assert decode_image(encode(picture(), ".png"), limits=limits).shape == (40, 60, 3)
    with pytest.raises(DataError, match="if it is meant to be so large, use --max-pixels 2460"):
        decode_image(encode(picture(41, 60), ".png"), limits=limits)
    with pytest.raises(DataError, match="2460, or --tile, which reads TIFF files by windows$"):
        decode_image(encode(picture(41, 60), ".tif"), limits=limits)
    file = io.BytesIO()
    Image.fromarray(picture(40, 60)).save(file, "JPEG2000")
    with pytest.raises(DataError, match="60 x 40 pixels, expected at most 1,200 in all"):
        decode_image(file.getvalue(), limits=limits)
    with pytest.raises(ValueError, match="max_pixels: expected 1 or more, got 0"):
        ImageLimits(max_pixels=0)


def test_a_file_with_more_bytes_than_its_pixels_need_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.write(encode(picture(), ".png"))
        file.truncate(3_000_000_000)
    with pytest.raises(DataError, match="a.png: has 3 GB, expected at most 1 GB"):
        read_image(path)


# VmHWM is the most memory, in KiB, since the program began; ru_maxrss counts that of pytest too.
READ_ALL = """
import sys
from mdssd.data import DataError, read_image

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

before = peak()
for path in sys.argv[1:]:
    try:
        read_image(path, upright=True)
    except DataError:
        pass
print(peak() - before)
"""


def test_memory_of_a_header_that_lies(tmp_path):
    jpeg = bytearray(noisy_jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    at = jpeg.index(b"\xff\xc2") + 5
    jpeg[at : at + 4] = (16000).to_bytes(2, "big") * 2
    (tmp_path / "a.jpg").write_bytes(jpeg)
    (tmp_path / "b.png").write_bytes(png_header(30_000, 30_000))
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.png")]
    command = [sys.executable, "-c", READ_ALL, *paths]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert grown < 100_000  # kB


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
            "is a HEIC image, .* convert it to JPEG",
        ),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + bytes(99), "not an image, but a video"),
        (b"<!doctype html><title>404", "not an image, but HTML"),
        (b"GIF89a" + bytes(3), "is a GIF image with a damaged header"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "is a JPEG image with a damaged header"),
        (bytes(999), "not an image, but only zero bytes"),
    ],
)
def test_what_is_no_image_is_named(content, reason):
    with pytest.raises(DataError, match=rf"^a\.jpg: is {reason.removeprefix('is ')}"):
        decode_image(content, "a.jpg")


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_truncated_jpeg_is_named_wherever_it_is_cut(tmp_path, options):
    whole = noisy_jpeg(*options)
    assert decode_image(whole).shape == (64, 64, 3)
    path = tmp_path / "cut.jpg"
    for length in [*range(2, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.jpg: .*(truncated|damaged)"):
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
        (b"these are words, not pixels\n" * 20, "is not an image, but"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "truncated"),
        (b"\xff\xd8\xff\xd9", "damaged header"),
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
        "d.jpg": with_exif(with_exif(encode(picture(), ".jpg"), bytes(60000)), bytes(60000)),
        "e.bmp": encode(picture(), ".bmp"),
        "f.webp": encode(picture(), ".webp"),
    }
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        header = read_header(tmp_path / name)
        assert header.size(upright=False) == header.size(upright=True) == (60, 40)
    with pytest.raises(DataError, match="gone.jpg: cannot be read"):
        read_header(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=re.escape("cannot be read (is a named pipe, expected")):
            read(tmp_path / "pipe.jpg")


def png_chunk(kind, content):
    check = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + check


@pytest.mark.parametrize("size", [8, 500])
@pytest.mark.parametrize("place", ["before", "after", "far after"])
def test_the_orientation_of_a_png_before_or_after_its_pixels(tmp_path, size, place):
    """Programs that add it to a file that exists put it behind the pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size + 8, 3), np.uint8)
    whole = encode(noise, ".png")
    assert (whole.count(b"IDAT") > 50) == (size == 500)
    exif = Image.Exif()
    exif[274] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    text = png_chunk(b"tEXt", b"note\0IDAT" + bytes(100_000 if place == "far after" else 10))
    at = whole.index(b"IDAT") - 4 if place == "before" else len(whole) - 12
    path = tmp_path / "a.png"
    path.write_bytes(whole[:at] + chunk + text + whole[at:])
    assert read_header(path) == (size + 8, size, 6, "PNG", "")
    assert read_image(path, upright=True).shape == (size + 8, size, 3)
    path.write_bytes(whole[:at] + text + whole[at:] + b"IDAT and more")
    assert read_header(path) == (size + 8, size, 1, "PNG", "")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (1500, 20)])
def test_the_header_of_each_kind_of_webp(mode, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for options, orientation in (
        ({"lossless": True}, 1),
        ({"quality": 80}, 1),
        ({"exif": exif}, 6),
        ({"exif": exif, "icc_profile": bytes(1001)}, 6),
        ({"save_all": True, "append_images": [Image.new(mode, size, "red")]}, 1),
    ):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "WEBP", **options)
        header = parse_header(io.BytesIO(file.getvalue()), "a")
        assert header[:4] == (*size, orientation, "WEBP")
        assert header.guess == (MORE_PAGES if "save_all" in options else "")
        for length in range(min(80, len(file.getvalue()) - 2)):
            with pytest.raises(DataError, match="^a: "):
                decode_image(file.getvalue()[:length], "a")


def test_a_lack_of_memory_names_the_image(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", full)
    with pytest.raises(DataError, match=r"^a: cannot be decoded \(there is not enough memory\)"):
        decode_image(noisy_jpeg(), "a")


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_a_pillow_image_without_pixels_is_named(size):
    reason = rf"photo: the image has {size[0]} x {size[1]} pixels, expected at least 1 x 1"
    with pytest.raises(DataError, match=reason):
        from_pillow(Image.new("RGB", size), "photo")
