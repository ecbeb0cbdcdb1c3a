"""Measures the memory and the time that hostile inputs take, and writes the table of the results.

    python tools/hostile_inputs.py                 # print the table
    python tools/hostile_inputs.py fifo bomb       # only the inputs whose names have these words
    python tools/hostile_inputs.py --write         # also put it into docs/reliability.md

Each input is built in a temporary folder and given to the command in a process of its own, whose
memory is the most that one process of the command held at a time (`ru_maxrss`). The tests of
tests/system/test_hostile.py run the same inputs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import mdssd
from mdssd.weights.checkpoint import save_checkpoint
from mdssd.weights.checkpoint_json import digest_of

Build: TypeAlias = Callable[[Path], None]
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MARKS = ("<!-- from tools/hostile_inputs.py -->", "<!-- end -->")
LIMIT = 2 * 1024  # MiB
HANG = 600  # seconds after which a command counts as hanging


# Runs a command and writes its exit status, memory and time. A process inherits the peak of the
# one that starts it, so that a small one must be between this program and the command.
_LAUNCH = """
import json, os, resource, sys, time
out, limit, *words = sys.argv[1:]
began = time.perf_counter()
child = os.fork()
if child == 0:
    if int(limit):
        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    os.execv(words[0], words)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - began
json.dump([os.waitstatus_to_exitcode(status), usage.ru_maxrss, seconds], open(out, "w"))
"""


class Hostile(NamedTuple):
    """A hostile input.

    Attributes:
        name: what it is.
        build: makes it in a folder.
        command: the words after `mdssd`; "ckpt" stands for the options of a small checkpoint.
        says: a pattern that the output must contain.
        status: the exit statuses that are right.
        nightly: whether it takes too long for every run of the tests.
        address_space: limit of the address space in GiB, or None.
    """

    name: str
    build: Callable[[Path], object]
    command: str
    says: str
    status: tuple[int, ...] = (1, 2)
    nightly: bool = True
    address_space: int | None = None


class Outcome(NamedTuple):
    """What a command did: exit status, output, the most memory in MiB, the time in seconds."""

    status: int
    output: str
    peak_mib: int
    seconds: float

    @property
    def line(self) -> str:
        """The error line, or what else was said."""
        errors = [line for line in self.output.splitlines() if line.startswith("mdssd: error:")]
        return errors[-1].removeprefix("mdssd: error: ") if errors else ""


def measure(hostile: Hostile, folder: Path, timeout: float = HANG) -> Outcome:
    """Build the input in a folder and run its command there."""
    hostile.build(folder)
    limit = (hostile.address_space or 0) << 30
    words = [sys.executable, "-S", "-c", _LAUNCH, str(folder / "used.json"), str(limit)]
    words += [sys.executable, "-m", "mdssd", *hostile.command.split()]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
    if not (folder / "used.json").exists():
        return Outcome(-1, f"{text}\nnot ended after {timeout} s", 0, timeout)
    status, kib, seconds = json.loads((folder / "used.json").read_text())
    return Outcome(status, text, kib // 1024, seconds)


def faults(hostile: Hostile, outcome: Outcome) -> list[str]:
    """Return what is wrong with an outcome."""
    found = []
    if outcome.peak_mib >= LIMIT:
        found.append(f"took {outcome.peak_mib} MiB")
    if outcome.status not in hostile.status:
        found.append(f"ended with {outcome.status}, expected one of {hostile.status}")
    if "Traceback" in outcome.output or "a bug in mdssd" in outcome.output:
        found.append("ended in an error of the program")
    if outcome.status == 2 and outcome.output.count("mdssd: error:") != 1:
        found.append("did not say why in one line")
    if not re.search(hostile.says, outcome.output, re.IGNORECASE):
        found.append(f"did not say {hostile.says!r}")
    return found and [*found, outcome.output[-600:]]


# --- pictures ------------------------------------------------------------------------------------


def png(width: int, height: int, text: int = 0) -> bytes:
    """Make a white PNG of one bit per pixel, and with a compressed text of so many bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(1)
    row = b"\0" + b"\xff" * -(-width // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(text))) if text else b""
    parts = chunk(b"IHDR", header) + comment + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def jpeg(width: int = 64, height: int = 48, stated: tuple[int, int] | None = None) -> bytes:
    """Make a JPEG, whose header states another (width, height) if that is given."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    if stated:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", stated[1], stated[0])
    return bytes(data)


def tiff_bomb() -> bytes:
    """Make a TIFF of 30,000 x 30,000 whose pixels are compressed."""
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


def pictures(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    """Return a function that writes a checkpoint, a folder with a good picture, and this file."""

    def build(folder: Path) -> None:
        checkpoint(folder)
        (folder / "in").mkdir()
        (folder / "in" / "good.jpg").write_bytes(jpeg())
        data = content() if callable(content) else content
        (folder / "in" / name).write_bytes(data)

    return build


# --- special files -------------------------------------------------------------------------------


def special(name: str, kind: str, before: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that puts a pipe, a device or a sparse file in the place of a file."""

    def build(folder: Path) -> None:
        before(folder)
        matches = list(folder.glob(name))
        path = matches[0] if matches else folder / name
        path.unlink(missing_ok=True)
        if kind == "FIFO":
            os.mkfifo(path)
        elif kind == "link to /dev/zero":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(100 << 30)

    return build


# --- data sets -----------------------------------------------------------------------------------

_OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>40</xmax><ymax>40</ymax>"
    "</bndbox></object>"
)


def voc(
    objects: Callable[[], str], before: str = "", size: tuple[int, int] = (64, 48)
) -> Callable[[Path], None]:
    """Return a function that writes a VOC folder whose first annotation has these objects."""

    def build(folder: Path) -> None:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / "voc" / name).mkdir(parents=True)
        for name in "ab":
            (folder / f"voc/JPEGImages/{name}.jpg").write_bytes(jpeg(*size))
            inner = objects() if name == "a" else _OBJECT.format("car", 1)
            text = f"{before}<annotation>{inner}</annotation>"
            (folder / f"voc/Annotations/{name}.xml").write_text(text)
        (folder / "voc/ImageSets/Main/trainval.txt").write_text("a\nb\n")

    return build


def coco(text: Callable[[], str]) -> Callable[[Path], None]:
    """Return a function that writes a COCO file with this text and its image."""

    def build(folder: Path) -> None:
        (folder / "a.jpg").write_bytes(jpeg())
        (folder / "c.json").write_text(text())

    return build


def coco_text(
    name: str = "car", box: str = "[1, 1, 20, 20]", image: str = "1", extra: str = ""
) -> str:
    """Return the text of a COCO file of one image and one box."""
    return (
        f'{{"images": [{{"id": {image}, "file_name": "a.jpg"}}], '
        f'"categories": [{{"id": 1, "name": "{name}"}}], "annotations": '
        f'[{{"image_id": {image}, "category_id": 1, "bbox": {box}{extra}}}]}}'
    )


def tabular(name: str, objects: Callable[[], Any], extra: int = 1, **options: Any) -> Build:
    """Return a function that writes a table of a row for each of the objects, by the ending.

    Args:
        name: the file.
        objects: returns the column of the objects.
        extra: the bytes behind the picture of each row.
        options: of the writer.
    """

    def build(folder: Path) -> None:
        picture = {"bytes": jpeg() + bytes(extra), "path": None}
        column = objects()
        made = pa.table({"image": [picture] * len(column), "objects": column})
        if name.endswith(".parquet"):
            pq.write_table(made, folder / name, **options)
        else:
            with pa.ipc.new_stream(str(folder / name), made.schema, **options) as stream:
                stream.write_table(made)

    return build


def boxes(rows: int) -> Any:
    """Return objects of a box and a class in each row."""
    return pa.array([{"bbox": [[1.0, 2.0, 30.0, 20.0]], "category": ["car"]}] * rows)


def one_row(boxes: Any, classes: Any) -> Any:
    """Return the objects of one row, from the arrays of its boxes and classes."""
    lists = [
        pa.ListArray.from_arrays(pa.array([0, len(each)], pa.int32()), each)
        for each in (boxes, classes)
    ]
    return pa.StructArray.from_arrays(lists, ["bbox", "category"])


def many_boxes(count: int) -> Any:
    """Return the objects of one row of so many boxes."""
    sides = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * count, np.float32)), 4)
    return one_row(sides, pa.array(np.zeros(count, np.int8)))


def long_names(folder: Path) -> None:
    """Write a table in which each of 1,000 rows has the same name of 20 MB."""
    names = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), ["c" * 20_000_000])
    lists = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), names)
    sides = pa.array([[[1.0, 2.0, 30.0, 20.0]]] * 1000)
    column = pa.StructArray.from_arrays([sides, lists], ["bbox", "category"])
    tabular("x.parquet", lambda: column, compression="zstd")(folder)


def thousand_classes(folder: Path) -> None:
    """Write a data set of two images with 1,000 classes, and a checkpoint for them."""
    names = [f"class {k:04}" for k in range(1000)]
    voc(lambda: "".join(_OBJECT.format(name, 1) for name in names[:500]))(folder)
    rest = "".join(_OBJECT.format(name, 1) for name in names[500:])
    (folder / "voc/Annotations/b.xml").write_text(f"<annotation>{rest}</annotation>")
    checkpoint(folder, names)


# --- weights and recipes -------------------------------------------------------------------------


def checkpoint(folder: Path, classes: list[str] | None = None) -> None:
    """Write a small checkpoint, m.json."""
    names = classes or ["a", "b"]
    model = mdssd.ssd300(len(names) + 1, width=0.03125)
    save_checkpoint(folder / "m.json", model, classes=names, mean=(123, 117, 104), extra={})


def lying_checkpoint(**changes: object) -> Callable[[Path], None]:
    """Return a function that writes a checkpoint whose JSON asks for another model."""

    def build(folder: Path) -> None:
        pictures("x.jpg", jpeg())(folder)
        meta = json.loads((folder / "m.json").read_text())
        meta["model"] |= changes
        if "num_classes" in changes:
            meta["classes"] = [str(k) for k in range(meta["model"]["num_classes"] - 1)]
        meta["digest"] = digest_of(meta)
        (folder / "m.json").write_text(json.dumps(meta))

    return build


def zip_bomb(folder: Path) -> None:
    """Write a PyTorch file whose pickle unpacks to 4 GB."""
    with zipfile.ZipFile(folder / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x/data.pkl", "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(1 << 26))


def file(name: str, content: Callable[[], bytes]) -> Callable[[Path], object]:
    """Return a function that writes this file."""
    return lambda folder: (folder / name).write_bytes(content())


_DETECT = "detect m.json in --out out --device cpu --threads 1"
_LIST = _DETECT.replace(" in ", " @l.txt ")
_NUMBERS = f"{_DETECT} --format coco --coco-images c.json"
_CHECK = "data check voc --split trainval"
_COCO = "data check c.json"
_SMALL = "--width 0.05 --batch-size 2 --iterations 1 --workers 0 --threads 1 --device cpu --out run"
_INIT = f"train --scenes 2 --init x.pth {_SMALL}"
_PARQUET = "data check x.parquet"
_RECIPE = "train --print-recipe --recipe r.toml"
_plain = voc(lambda: _OBJECT.format("car", 1))
_SPECIAL = (
    ("image", ".jpg", "in/x.jpg", pictures("x.jpg", b"x"), _DETECT),
    ("annotation", ".xml", "voc/Annotations/a.xml", _plain, _CHECK),
    ("split list", ".txt", "voc/ImageSets/Main/trainval.txt", _plain, _CHECK),
    ("COCO file", ".json", "c.json", coco(coco_text), _COCO),
    ("list of images", ".txt", "l.txt", pictures("x.jpg", jpeg()), _LIST),
    ("COCO file of numbers", ".json", "c.json", pictures("x.jpg", jpeg()), _NUMBERS),
    ("checkpoint", ".json", "m.json", pictures("x.jpg", jpeg()), _DETECT),
    ("weights", ".safetensors", "m-*.safetensors", pictures("x.jpg", jpeg()), _DETECT),
    ("starting weights", ".pth", "x.pth", lambda folder: None, _INIT),
    ("table", ".parquet", "x.parquet", tabular("x.parquet", lambda: boxes(1)), _PARQUET),
    ("table", ".csv", "x.csv", lambda folder: None, _PARQUET.replace("parquet", "csv")),
    ("recipe", ".toml", "r.toml", lambda folder: None, _RECIPE),
)
_KINDS = {
    "FIFO": "named pipe|regular file",
    "link to /dev/zero": "device|regular file",
    "sparse file of 100 GiB": r"at most|107|GB|large|bytes|1,048,576 characters",
}

INPUTS = [
    Hostile(
        "PNG of 30,000 x 30,000 in 110 kB",
        pictures("x.png", lambda: png(30_000, 30_000)),
        _DETECT,
        r"x\.png.*pixels",
        nightly=False,
    ),
    Hostile("TIFF of 30,000 x 30,000", pictures("x.tif", tiff_bomb), _DETECT, r"x\.tif.*pixels"),
    Hostile(
        "JPEG header edited to 16,000 x 65,500",
        pictures("x.jpg", lambda: jpeg(stated=(16_000, 65_500))),
        _DETECT,
        r"x\.jpg.*pixels",
    ),
    Hostile(
        "JPEG header edited to 9,990 x 10,000",
        pictures("x.jpg", lambda: jpeg(stated=(9_990, 10_000))),
        _DETECT,
        r"x\.jpg.*(damaged|truncated)",
    ),
    Hostile(
        "PNG with a text of 1 GB in 1 MB",
        pictures("x.png", lambda: png(64, 48, 1 << 30)),
        _DETECT,
        r".",
        (0, 1, 2),
    ),
    Hostile(
        "PNG whose last chunk asks for 4 GB",
        pictures("x.png", lambda: png(64, 48)[:33] + b"\xff\xff\x00\x1aIEND\x60\x82"),
        _DETECT,
        r"x\.png.*truncated",
    ),
    Hostile(
        "checkpoint JSON with width 16",
        lying_checkpoint(width=16),
        _DETECT,
        r"m\.json|width",
        nightly=False,
    ),
    Hostile("checkpoint JSON with width 4", lying_checkpoint(width=4), _DETECT, r"m[-.\w]*"),
    Hostile(
        "checkpoint JSON with 100,000 classes",
        lying_checkpoint(num_classes=100_001),
        _DETECT,
        r"classes",
    ),
    Hostile(
        "checkpoint JSON with 9,999 classes",
        lying_checkpoint(num_classes=10_000),
        _DETECT,
        r"m[-.\w]*",
    ),
    Hostile(
        "pickle of 30 million marks",
        file("x.pth", lambda: b"\x80\x02" + b"(" * 30_000_000),
        _INIT,
        r"x\.pth",
    ),
    Hostile("PyTorch file that unpacks to 4 GB", zip_bomb, _INIT, r"x\.pth"),
    Hostile(
        "300,000 boxes in one XML",
        voc(lambda: "".join(_OBJECT.format("car", k % 30) for k in range(300_000))),
        _CHECK,
        r"voc",
        (0, 1, 2),
    ),
    Hostile(
        "training on 300,000 boxes in one XML",
        voc(lambda: "".join(_OBJECT.format("car", k % 30) for k in range(300_000))),
        f"train --data voc --split trainval --model ssd300 {_SMALL}",
        r"voc",
        (0, 1, 2),
    ),
    Hostile(
        "XML with a class name of 100 MB",
        voc(lambda: _OBJECT.format("c" * 100_000_000, 1)),
        _CHECK,
        r"a\.xml",
    ),
    Hostile(
        "XML with a class name of 50 MB",
        voc(lambda: _OBJECT.format("c" * 50_000_000, 1)),
        _CHECK,
        r"a\.xml",
    ),
    Hostile(
        "XML nested 1,000,000 deep",
        voc(lambda: "<a>" * 1_000_000 + "</a>" * 1_000_000),
        _CHECK,
        r"a\.xml|voc",
        (0, 1, 2),
    ),
    Hostile(
        "XML with entities that grow to 10 GB",
        voc(
            lambda: "<object>&i;</object>",
            '<!DOCTYPE z [<!ENTITY a "ha">'
            + "".join(
                f'<!ENTITY {b} "{f"&{a};" * 10}">'
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
            + "]>",
        ),
        _CHECK,
        r"a\.xml",
        nightly=False,
    ),
    Hostile(
        "COCO class name of 100 MB",
        coco(lambda: coco_text(name="c" * 100_000_000)),
        _COCO,
        r"c\.json",
    ),
    Hostile(
        "COCO file nested 1,000,000 deep",
        coco(lambda: "[" * 1_000_000),
        _COCO,
        r"c\.json",
    ),
    Hostile(
        "COCO segmentation nested 1,000,000 deep",
        coco(lambda: coco_text(extra=', "segmentation": ' + "[" * 1_000_000 + "]" * 1_000_000)),
        _COCO,
        r"c\.json",
    ),
    Hostile(
        "COCO box of 400-digit integers",
        coco(lambda: coco_text(box=f"[{'9' * 400}, 1, 5, 5]")),
        _COCO,
        r"c\.json.*box",
        (0, 1, 2),
    ),
    Hostile(
        "COCO id of 400 digits", coco(lambda: coco_text(image="9" * 400)), _COCO, r".", (0, 1, 2)
    ),
    Hostile(
        "COCO box of 5,000-digit integers",
        coco(lambda: coco_text(box=f"[{'9' * 5000}, 1, 5, 5]")),
        _COCO,
        r"c\.json",
        (0, 1, 2),
    ),
    Hostile(
        "Parquet row of 30 million boxes in 15 kB",
        tabular("x.parquet", lambda: many_boxes(30_000_000), compression="zstd"),
        _PARQUET,
        r"x\.parquet: row group 0 unpacks to",
    ),
    Hostile(
        "Parquet row of 1 million boxes in 10 kB",
        tabular("x.parquet", lambda: many_boxes(1_000_000), compression="zstd"),
        _PARQUET,
        r"x\.parquet: row 0: holds",
        nightly=False,
    ),
    Hostile(
        "Parquet name of 20 MB in 1,000 rows", long_names, _PARQUET, r"x\.parquet: row 0: holds"
    ),
    Hostile(
        "Parquet image of 50 MB in 40 rows of 4 kB",
        tabular("x.parquet", lambda: boxes(40), 50_000_000, compression="zstd"),
        _PARQUET,
        r"x\.parquet: row group 0 unpacks",
    ),
    Hostile(
        "Parquet page that unpacks to 500 MB",
        tabular(
            "x.parquet",
            lambda: boxes(1),
            500_000_000,
            compression="gzip",
            use_dictionary=False,
        ),
        _PARQUET,
        r"x\.parquet: .* a page has",
    ),
    Hostile(
        "Arrow batches that unpack to 1.2 GB",
        tabular(
            "x.arrow",
            lambda: boxes(12),
            100_000_000,
            options=pa.ipc.IpcWriteOptions(compression="zstd"),
        ),
        _PARQUET.replace("parquet", "arrow"),
        r"x\.arrow: its batches unpack",
    ),
    Hostile(
        "Arrow list of 2 billion nulls in 1 kB",
        tabular("x.arrow", lambda: one_row(pa.nulls(2**31 - 1), pa.array(["car"]))),
        _PARQUET.replace("parquet", "arrow"),
        r"x\.arrow: row 0: holds",
    ),
    Hostile(
        "CSV with a row of 100 MB",
        file("x.csv", lambda: b"path,x1,y1,x2,y2,class\na.jpg,1,1,9,9," + b"c" * 100_000_000),
        _PARQUET.replace("parquet", "csv"),
        r"x\.csv:2: the line has more than",
    ),
    Hostile(
        "recipe nested 100,000 deep",
        file("r.toml", lambda: b"lr = " + b"[" * 100_000),
        _RECIPE,
        r"r\.toml",
    ),
    Hostile(
        "recipe with a 400-digit batch size",
        file("r.toml", lambda: b"batch_size = 1" + b"0" * 400),
        _RECIPE,
        r"batch_size",
    ),
    Hostile(
        "list of 100 million lines without a file",
        lambda folder: (
            pictures("x.jpg", jpeg())(folder),
            file("l.txt", lambda: b"y\n" * 10**8)(folder),
        ),
        _LIST,
        r"l\.txt:10001: the 10,001th line",
    ),
    Hostile(
        "--threads 100000, address space of 8 GiB",
        pictures("x.jpg", jpeg()),
        _DETECT.replace("--threads 1", "--threads 100000"),
        r"threads|2 images|2 pictures",
        (0, 1, 2),
        nightly=False,
        address_space=8,
    ),
    Hostile(
        "eval with 1,000 classes",
        thousand_classes,
        "eval m.json --data voc --split trainval --out e --device cpu --threads 1",
        r"e\b|mAP|voc",
        (0,),
    ),
    *(
        Hostile(
            f"{kind} as {what} ({suffix})",
            special(path, kind, before),
            command,
            says,
            nightly=kind != "FIFO" or suffix != ".xml",
        )
        for kind, says in _KINDS.items()
        for what, suffix, path, before, command in _SPECIAL
    ),
]


def table(results: list[tuple[Hostile, Outcome]]) -> str:
    """Return the results as a table in Markdown."""
    lines = ["| input | command | outcome | MiB | s |", "|---|---|---|---|---|"]
    for hostile, outcome in results:
        verb = " ".join(hostile.command.split()[: 2 if hostile.command.startswith("data") else 1])
        done = {0: "read", 1: "left out, named"}.get(outcome.status, "refused")
        lines.append(
            f"| {hostile.name} | `{verb}` | {done} | {outcome.peak_mib} | {outcome.seconds:.1f} |"
        )
    worst = max(outcome.peak_mib for _, outcome in results)
    slowest = max(outcome.seconds for _, outcome in results)
    lines += [
        "",
        f"The most memory is {worst} MiB and the most time {slowest:.1f} s ({platform.machine()}, "
        f"{os.cpu_count()} cores that other programs used as well).",
    ]
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> int:
    """Run the inputs; return 1 if one of them has a wrong outcome."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only the inputs whose names have these words")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    arguments = parser.parse_args()
    results, wrong = [], 0
    for hostile in INPUTS:
        if arguments.words and not any(w.lower() in hostile.name.lower() for w in arguments.words):
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = measure(hostile, Path(folder))
        results.append((hostile, outcome))
        print(
            f"{hostile.name}: {outcome.status}, {outcome.peak_mib} MiB, {outcome.seconds:.1f} s",
            outcome.line[:150],
            flush=True,
        )
        for fault in faults(hostile, outcome):
            wrong = 1
            print(f"  FAULT {fault}", flush=True)
    print(table(results))
    if arguments.write:
        write(table(results))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
