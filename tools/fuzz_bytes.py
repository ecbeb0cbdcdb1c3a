"""Coverage-guided fuzzing of the code that reads bytes, with atheris.

    pip install -e '.[fuzz]'
    python tools/fuzz_bytes.py jpeg -max_total_time=60    # any option of libFuzzer
    make fuzz SECONDS=60                                  # every target

A target reads bytes that libFuzzer varies so that they reach more and more branches of mdssd. The
documented exception is a right outcome, and so is a result; any other exception ends the run and
leaves the input in a file crash-*. Such inputs become examples of the tests in tests/fuzz.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

with atheris.instrument_imports(include=["mdssd"]):
    import mdssd
    from mdssd.data import image_headers, images, open_dataset
    from mdssd.data.sample import DataError
    from mdssd.weights import checkpoint, checkpoint_json, foreign_files

FOLDER = Path(tempfile.mkdtemp(prefix="mdssd-fuzz-"))


def encoded(format: str, **options: object) -> bytes:
    """Return a small picture in a format."""
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def read_picture(data: bytes) -> None:
    """Read the header and the pixels; they state the same size."""
    try:
        header = image_headers.parse_header(io.BytesIO(data), "x")
    except DataError as error:
        assert str(error).startswith("x: "), error
        return
    assert header.width > 0 and header.height > 0 and 1 <= header.orientation <= 8
    try:
        picture = images.decode_image(data, "x", limits=images.ImageLimits(max_pixels=100_000))
        assert picture.shape == (header.height, header.width, 3) and picture.dtype == np.uint8
    except DataError as error:
        assert str(error).startswith("x: "), error


def read_weights(data: bytes) -> None:
    """Read the file as the weights of another project."""
    path = FOLDER / "weights"
    path.write_bytes(data)
    try:
        foreign_files.read_tensors("load", path)
    except ValueError as error:
        assert str(path) in str(error), error


def read_json(data: bytes) -> None:
    """Read the JSON of a checkpoint, with its digest made right."""
    path = FOLDER / "m.json"
    try:
        meta = json.loads(data)
        meta["digest"] = checkpoint_json.digest_of(meta)
        data = json.dumps(meta).encode()
    except (ValueError, TypeError, RecursionError, AttributeError):
        pass
    path.write_bytes(data)
    try:
        checkpoint.load_checkpoint(path)
    except checkpoint.CheckpointError as error:
        assert str(FOLDER) in str(error), error


def read_table(name: str) -> Callable[[bytes], None]:
    """Return a function that opens a file of this name beside an image a.png as a data set."""
    (FOLDER / "a.png").write_bytes(encoded("PNG"))

    def read(data: bytes) -> None:
        path = FOLDER / name
        path.write_bytes(data)
        try:
            dataset = open_dataset(path, "all", faults=[])
        except DataError as error:
            assert str(FOLDER) in str(error), error
            return
        for index in range(len(dataset)):
            boxes = dataset.annotation(index).boxes_xyxy
            assert np.isfinite(boxes).all() and (boxes[:, :2] < boxes[:, 2:]).all(), boxes

    return read


def table_file(name: str) -> bytes:
    """Return a table of an image with a box, in the format of the ending."""
    if name.endswith(".csv"):
        return b"path,x1,y1,x2,y2,class\na.png,1,2,9,9,car\n"
    objects = [{"bbox": [[1.0, 2.0, 8.0, 7.0]], "category": ["car"]}]
    made = pa.table({"image": [{"bytes": encoded("PNG"), "path": None}], "objects": objects})
    buffer = io.BytesIO()
    if name.endswith(".parquet"):
        pq.write_table(made, buffer, compression="none")
    else:
        with pa.ipc.new_stream(buffer, made.schema) as stream:
            stream.write_table(made)
    return buffer.getvalue()


def saved_checkpoint() -> bytes:
    """Write a small checkpoint; return its JSON."""
    model = mdssd.ssd300(3, width=0.03125)
    path = FOLDER / "m.json"
    checkpoint.save_checkpoint(path, model, classes=["a", "b"], mean=(1, 2, 3), extra={})
    return path.read_bytes()


def safetensors_file() -> bytes:
    """Return a safetensors file of one tensor."""
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = json.dumps({"conv.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


def caffe_model() -> bytes:
    """Return a Caffe model of one layer with one weight [2, 3]."""

    def field(number: int, content: bytes) -> bytes:
        tag = number << 3 | 2
        start = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
        return start + bytes([len(content)]) + content

    blob = field(7, field(7, field(1, b"\2\3")) + field(5, bytes(24)))
    return field(1, b"net") + field(100, field(1, b"conv") + blob)


# For each target: the function that reads, and the files to begin with.
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "jpeg": (read_picture, lambda: [encoded("JPEG"), encoded("JPEG", progressive=True)]),
    "png": (read_picture, lambda: [encoded("PNG"), encoded("WEBP"), encoded("TIFF")]),
    "caffemodel": (read_weights, lambda: [caffe_model()]),
    "checkpoint-json": (read_json, lambda: [saved_checkpoint()]),
    "safetensors-header": (read_weights, lambda: [safetensors_file()]),
    "csv": (read_table("x.csv"), lambda: [table_file("x.csv")]),
    "arrow": (read_table("x.arrow"), lambda: [table_file("x.arrow")]),
}


def main() -> None:
    """Fuzz the target that is named first; the other words are options of libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"expected one of {', '.join(TARGETS)}")
    read, seeds = TARGETS[sys.argv[1]]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
