"""What a file is, by its first bytes."""

import io
import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from mdssd.system.kinds import kind_of_bytes, kind_of_file

IMAGES = {
    "JPEG": "a JPEG image",
    "PNG": "a PNG image",
    "GIF": "a GIF image",
    "BMP": "a BMP image",
    "TIFF": "a TIFF image",
    "WEBP": "a WebP image",
    "ICO": "an icon (ICO)",
    "PDF": "a PDF",
}


@pytest.mark.parametrize("form", IMAGES)
def test_images(form):
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(file, form)
    assert kind_of_bytes(file.getvalue()) == IMAGES[form]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "an AVIF image"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2", "a video (MP4)"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a video (QuickTime)"),
        (b"RIFF\x24\0\0\0AVI LIST", "a video (AVI)"),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "a video (Matroska or WebM)"),
        (b"PK\x03\x04" + bytes(22) + b"\x05\0\0\0a.txt", "a ZIP archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"", "an empty file"),
        (bytes(100), "only zero bytes"),
        (b"<!DOCTYPE HTML PUBLIC>", "HTML"),
        (b"\n <html lang=en>", "HTML"),
        (b"<?xml version='1.0'?><annotation/>", "XML"),
        (b"<annotation><folder/></annotation>", "XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b'\xef\xbb\xbf{"images": []}', "JSON"),
        ('{"images": []}'.encode("utf-16"), "JSON"),
        (b"img1.jpg\nimg2.jpg\n", "text"),
        ("BMW überholt".encode(), "text"),
        # A character that the limit of 4,096 bytes cuts in two.
        (("x" + "ü" * 4096).encode(), "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
         "a Git LFS pointer (`git lfs pull` gets the file)"),
        (bytes(range(128, 256)) * 4, "unknown data"),
        (b"\x80", "unknown data"),
    ],
)  # fmt: skip
def test_other_data(data, kind):
    assert kind_of_bytes(data) == kind


def test_weights():
    tensors = {"w": torch.zeros(2)}
    assert kind_of_bytes(save(tensors)) == "a safetensors file"
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
        assert kind_of_bytes(file.getvalue()) == "a PyTorch pickle"
    assert kind_of_bytes(pickle.dumps({"a": 1})) == "a pickle"


def test_files(tmp_path):
    assert kind_of_file(tmp_path) == "a folder"
    missing = "a file that cannot be read (No such file or directory)"
    assert kind_of_file(tmp_path / "no") == missing
    (tmp_path / "a.jpg").write_text(json.dumps([1]))
    assert kind_of_file(tmp_path / "a.jpg") == "JSON"
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((2, 2, 3), np.uint8))
    assert kind_of_file(tmp_path / "b.png") == "a PNG image"
