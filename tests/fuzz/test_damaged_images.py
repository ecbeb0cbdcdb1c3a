"""Damaged image files: decoded to the size that their header states, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from strategies import damaged_bytes

from mdssd.data import DataError, decode_image, read_image
from mdssd.data.images import read_header

WIDTH, HEIGHT = 40, 30


def encoded(format: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "png": encoded("PNG"),
    "webp": encoded("WEBP"),
    "tiff": encoded("TIFF"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
}


# Its last chunk asks for 4 GB, which OpenCV reserved. Found by tools/fuzz_bytes.py.
IEND_OF_4_GB = FILES["png"][:33] + b"\xff\xff\x00\x1aIEND\x60\x82"


@given(content=st.binary(max_size=40))
@example(content=IEND_OF_4_GB)
@example(content=b"\xff")  # shorter than what a format begins with
@example(content=b"R")
def test_a_few_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "few.img"
    path.write_bytes(content)
    check(path, content)


def test_the_last_chunk_of_a_png_must_be_empty() -> None:
    with pytest.raises(DataError, match="truncated"):
        decode_image(IEND_OF_4_GB)


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_a_damaged_image(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = data.draw(damaged_bytes(FILES[kind]))
    path = tmp_path_factory.getbasetemp() / "damaged.img"
    path.write_bytes(content)
    check(path, content)


def check(path: Path, content: bytes) -> None:
    header = image = None
    try:
        header = read_header(path)
    except DataError as error:
        assert str(error).startswith(str(path)), error
    try:
        image = read_image(path)
    except DataError as error:
        assert str(error).startswith(str(path)), error
    if image is not None:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        if header is not None:
            assert image.shape == (header.height, header.width, 3)
    try:
        small = decode_image(content, "small", 2)
        assert image is None or small.shape == (-(-image.shape[0] // 2), -(-image.shape[1] // 2), 3)
    except DataError as error:
        assert str(error).startswith("small"), error
