"""Detecting in files: pictures with boxes, and the boxes as JSON or CSV."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.detection.detector import STAGES, Detector, Streamed
from mdssd.drawing import draw_detections
from mdssd.names import TABLES
from mdssd.system.files import atomic_write

_COLUMNS = ("file", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2")


@dataclass
class DetectReport:
    """What `detect` did.

    images: one dict per image that could be read: "file", "width", "height", "detections" (each
    "class", "label", "score", "box_xyxy" in pixels); empty where they were not to be kept.
    failed: (file, reason) of the others. timings: seconds per stage: decode (waiting, where
    worker processes do it), preprocess, network, detection_output, draw (which includes writing
    the picture). pictures, tables: the files written. image_count, detection_count: how many.
    """

    failed: list[tuple[str, str]]
    images: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    image_count: int = 0
    detection_count: int = 0

    def table(self, failures: bool = True) -> str:
        """Counts, time per stage, files written and (if asked for) failures, for a terminal."""
        lines = [f"{self.detection_count} detections in {self.image_count} images"]
        if self.failed:
            lines[0] += f", {len(self.failed)} failed"
        if self.image_count:
            total = sum(self.timings.values())
            lines += ["", f"{'stage':<17}{'ms/image':>10}{'share':>8}"]
            for stage, seconds in [*self.timings.items(), ("total", total)]:
                each, share = 1000 * seconds / self.image_count, seconds / total if total else 0.0
                lines.append(f"{stage:<17}{each:>10.2f}{share:>8.0%}")
            lines.append("")
        if self.pictures:
            lines.append(f"{len(self.pictures)} pictures in {self.pictures[0].parent}")
        lines += [f"boxes in {path}" for path in self.tables]
        if failures:
            lines += [f"failed: {reason}" for _, reason in self.failed]
        return "\n".join(lines)


def detect(
    detector: Detector,
    sources: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    score_threshold: float = 0.5,
    draw: bool = True,
    formats: Sequence[str] = ("json",),
    workers: int | None = None,
    keep_images: bool = True,
    progress: bool = True,
) -> DetectReport:
    """Detect in image files and write pictures and tables of what was found into a folder.

    sources: image files, folders (the images directly in them, by name), or glob patterns.
    out_dir: made if missing; gets `<name>.jpg` with the boxes drawn (where `draw`), and
        `detections.json`, `detections.csv`, or both, by `formats`. Files of those names are
        replaced, each at once or not at all.
    score_threshold: what is drawn and written has at least this score. It cannot bring back what
        the detector's own score_threshold left out.

    workers: processes that read the images, as of `Detector.stream`; None starts none for a
        single batch.
    keep_images: whether the report holds the detections as well. Without them memory does not
        grow with the number of files: tables are written while it goes on.

    A file that cannot be read is reported in the result (and, with `progress`, at once) and the
    others go on. If none can be read nothing is written. Ctrl-C ends it with the tables of what
    was done in place, and a KeyboardInterrupt that says how much that is.
    Raises ValueError, before anything is written, where the sources hold no image at all, where
    out_dir holds one of them (a picture could replace it), or on an unknown format.
    """
    unknown = [name for name in formats if name not in TABLES]
    if unknown or isinstance(formats, str):
        raise ValueError(f"detect: formats: expected some of {list(TABLES)}, got {formats!r}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"detect: score_threshold: expected 0 to 1, got {score_threshold}")
    if isinstance(sources, (str, os.PathLike)):
        raise TypeError(f"detect: sources: expected a list of paths, got {sources!r}")
    files, failed = _find_images(sources)
    if not files:
        reasons = "; ".join(reason for _, reason in failed) or "no source was given"
        raise ValueError(f"detect: no image found: {reasons}")
    out = Path(out_dir)
    _check_out(out, files)

    if workers is None and len(files) <= detector.batch_size:
        workers = 0
    report = DetectReport(failed)
    names = _picture_names(files) if draw else {}
    before = dict(detector.timings)
    interrupted = False
    with ExitStack() as stack:
        bar = tqdm(total=len(files), desc="detect", unit="image", disable=not progress)
        stack.enter_context(bar)
        results = detector.stream(files, workers=workers, with_images=draw)
        stack.enter_context(closing(results))
        forms = dict.fromkeys(formats)
        tables = [stack.enter_context(_table(out, form, report.tables)) for form in forms]
        if progress:
            for _, reason in failed:
                bar.write(f"failed: {reason}")
        try:
            for result in results:
                if result.error is not None:
                    failed.append((str(result.source), str(result.error)))
                    if progress:
                        bar.write(f"failed: {result.error}")
                else:
                    result = _above(result, score_threshold)
                    if draw:
                        _draw(report, out / names[result.source], result, detector.classes)
                    entry = _entry(result, detector.classes)
                    with _uninterrupted():  # so that all tables and the counts agree
                        for add in tables:
                            add(entry)
                        report.image_count += 1
                        report.detection_count += len(entry["detections"])
                        if keep_images:
                            report.images.append(entry)
                bar.update()
        except KeyboardInterrupt:  # raised again when the tables are closed
            interrupted = True
    if interrupted:
        where = "".join(f"; boxes in {path}" for path in report.tables)
        raise KeyboardInterrupt(f"{report.image_count} of {len(files)} images done{where}")
    stages = {stage: detector.timings[stage] - before[stage] for stage in STAGES}
    report.timings = stages | report.timings
    return report


def _find_images(
    sources: Sequence[str | os.PathLike[str]],
) -> tuple[list[Path], list[tuple[str, str]]]:
    """The files that the sources mean, each once, and the sources that mean none."""
    files: dict[str, Path] = {}
    failed = []
    for path in map(Path, sources):
        source = str(path)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            reason = f"{source}: the folder has no image ({', '.join(IMAGE_SUFFIXES)})"
        elif path.exists() or not glob.has_magic(source):
            found, reason = [path], f"{source}: no such file or folder"
            if not path.exists():
                found = []
        else:
            matches = map(Path, sorted(glob.glob(source, recursive=True)))
            found, reason = [p for p in matches if p.is_file()], f"{source}: matches no file"
        if not found:
            failed.append((source, reason))
        for file in found:
            files.setdefault(os.path.realpath(file), file)
    return list(files.values()), failed


def _check_out(out: Path, files: Sequence[Path]) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"detect: out_dir: expected a folder, {out} is a file")
    taken = os.path.realpath(out)
    for file in files:
        if taken in (os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))):
            raise ValueError(
                f"detect: out_dir: {out} holds the image {file.name}, which a picture could "
                "replace; choose another folder"
            )


def _picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name of its own for the picture of every file; equal stems get a number."""
    names: dict[Path, str] = {}
    used: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name.lower() in used:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        used.add(name.lower())
        names[file] = name
    return names


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; only the main thread gets it, and so can."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def _above(result: Streamed, score_threshold: float) -> Streamed:
    kept = result.found["scores"] >= score_threshold
    return result._replace(found={name: value[kept] for name, value in result.found.items()})


def _entry(result: Streamed, classes: Sequence[str]) -> dict[str, Any]:
    found = result.found
    rows = zip(
        found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
    )
    height, width = result.size
    return {
        "file": str(result.source),
        "width": width,
        "height": height,
        "detections": [
            {
                "class": classes[label - 1],
                "label": label,
                "score": round(score, 6),
                "box_xyxy": [round(value, 3) for value in box],
            }
            for label, score, box in rows
        ],
    }


def _draw(report: DetectReport, path: Path, result: Streamed, classes: Sequence[str]) -> None:
    began = time.perf_counter()
    assert result.image is not None
    _write_picture(path, result.image, result.found, classes)
    report.pictures.append(path)
    report.timings["draw"] = report.timings.get("draw", 0.0) + time.perf_counter() - began


def _write_picture(
    path: Path, image: NDArray[np.uint8], found: dict[str, Tensor], classes: Sequence[str]
) -> None:
    picture = draw_detections(image, found["boxes"], found["labels"], found["scores"], classes)
    # 4:4:4 because halved colour blurs thin coloured lines and letters.
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        93,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise OSError(f"detect: {path}: the picture could not be encoded")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as stream:
        stream.write(data.tobytes())


@contextmanager
def _table(out: Path, form: str, written: list[Path]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that adds an image to the table; the file appears at the end.

    Without an image there is no file. `written` gets its path.
    """
    path = out / f"detections.{form}"
    rows, tail = {"json": (_json_rows, "\n]\n"), "csv": (_csv_rows, "")}[form]
    file: IO[bytes] | None = None
    with ExitStack() as stack:

        def add(image: dict[str, Any]) -> None:
            nonlocal file
            text = rows(image, file is None)
            if file is None:
                out.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(atomic_write(path, "wb"))
            file.write(text.encode("utf-8", "surrogateescape"))

        yield add
        if file is not None:
            file.write(tail.encode())
            written.append(path)


def _json_rows(image: dict[str, Any], first: bool) -> str:
    """An image of the list, with one line per detection."""
    rows = ",\n".join("    " + json.dumps(found) for found in image["detections"])
    head = json.dumps({name: image[name] for name in ("file", "width", "height")})
    tail = f'"detections": [\n{rows}\n  ]' if rows else '"detections": []'
    return ("[\n" if first else ",\n") + f"  {head[:-1]}, {tail}}}"


def _csv_rows(image: dict[str, Any], first: bool) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if first:
        writer.writerow(_COLUMNS)
    for found in image["detections"]:
        head = (image["file"], image["width"], image["height"])
        row = (found["class"], found["label"], found["score"], *found["box_xyxy"])
        writer.writerow((*head, *row))
    return stream.getvalue()
