"""Detecting in files: pictures with boxes, and the boxes as JSON or CSV."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mdssd.data import DataError
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.engine.detector import STAGES, Detector
from mdssd.engine.draw import draw_detections
from mdssd.engine.files import atomic_write

FORMATS = ("json", "csv")
_COLUMNS = ("file", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class DetectReport:
    """What `detect` did.

    images: one dict per image that could be read: "file", "width", "height", "detections" (each
    "class", "label", "score", "box_xyxy" in pixels). failed: (file, reason) of the others.
    timings: seconds per stage: decode, preprocess, network, detection_output, draw (which
    includes writing the picture). pictures, tables: the files written.
    """

    images: list[dict[str, Any]]
    failed: list[tuple[str, str]]
    timings: dict[str, float]
    pictures: list[Path]
    tables: list[Path]

    def table(self) -> str:
        """Counts, time per stage, files written and failures as text for a terminal."""
        found = sum(len(image["detections"]) for image in self.images)
        lines = [f"{found} detections in {len(self.images)} images"]
        if self.images:
            total = sum(self.timings.values())
            lines += ["", f"{'stage':<17}{'ms/image':>10}{'share':>8}"]
            for stage, seconds in [*self.timings.items(), ("total", total)]:
                each, share = 1000 * seconds / len(self.images), seconds / total if total else 0.0
                lines.append(f"{stage:<17}{each:>10.2f}{share:>8.0%}")
            lines.append("")
        if self.pictures:
            lines.append(f"{len(self.pictures)} pictures in {self.pictures[0].parent}")
        lines += [f"boxes in {path}" for path in self.tables]
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
    progress: bool = True,
) -> DetectReport:
    """Detect in image files and write pictures and tables of what was found into a folder.

    sources: image files, folders (the images directly in them, by name), or glob patterns.
    out_dir: made if missing; gets `<name>.jpg` with the boxes drawn (where `draw`), and
        `detections.json`, `detections.csv`, or both, by `formats`. Files of those names are
        replaced, each at once or not at all.
    score_threshold: what is drawn and written has at least this score. It cannot bring back what
        the detector's own score_threshold left out.

    A file that cannot be read is reported in the result (and, with `progress`, at once) and the
    others go on. If none can be read nothing is written.
    Raises ValueError, before anything is written, where the sources hold no image at all, where
    out_dir holds one of them (a picture could replace it), or on an unknown format.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or isinstance(formats, str):
        raise ValueError(f"detect: formats: expected some of {list(FORMATS)}, got {formats!r}")
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

    names = _picture_names(files)
    images: list[dict[str, Any]] = []
    pictures: list[Path] = []
    before = dict(detector.timings)
    drawing = 0.0
    size = detector.batch_size
    with tqdm(total=len(files), desc="detect", unit="image", disable=not progress) as bar:
        for start in range(0, len(files), size):
            batch: list[tuple[Path, NDArray[np.uint8]]] = []
            for file in files[start : start + size]:
                try:
                    batch.append((file, detector.read(file)))
                except DataError as error:
                    failed.append((str(file), str(error)))
                    if progress:
                        bar.write(f"failed: {error}")
            results = detector([image for _, image in batch]) if batch else []
            for (file, image), result in zip(batch, results, strict=True):
                kept = {k: v[result["scores"] >= score_threshold] for k, v in result.items()}
                images.append(_entry(file, image, kept, detector.classes))
                if draw:
                    began = time.perf_counter()
                    pictures.append(out / names[file])
                    _write_picture(pictures[-1], image, kept, detector.classes)
                    drawing += time.perf_counter() - began
            bar.update(len(files[start : start + size]))

    timings = {stage: detector.timings[stage] - before[stage] for stage in STAGES}
    if draw:
        timings["draw"] = drawing
    tables = []
    if images:
        out.mkdir(parents=True, exist_ok=True)
        for form in dict.fromkeys(formats):
            tables.append(out / f"detections.{form}")
            text = _json(images) if form == "json" else _csv(images)
            with atomic_write(tables[-1], "wb") as stream:
                stream.write(text.encode("utf-8", "surrogateescape"))
    return DetectReport(images, failed, timings, pictures, tables)


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


def _entry(
    file: Path, image: NDArray[np.uint8], found: dict[str, Tensor], classes: Sequence[str]
) -> dict[str, Any]:
    rows = zip(
        found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
    )
    return {
        "file": str(file),
        "width": image.shape[1],
        "height": image.shape[0],
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


def _json(images: Sequence[dict[str, Any]]) -> str:
    """A list of images, written with one line per detection."""
    texts = []
    for image in images:
        rows = ",\n".join("    " + json.dumps(found) for found in image["detections"])
        head = json.dumps({name: image[name] for name in ("file", "width", "height")})
        tail = f'"detections": [\n{rows}\n  ]' if rows else '"detections": []'
        texts.append(f"  {head[:-1]}, {tail}}}")
    return "[\n" + ",\n".join(texts) + "\n]\n"


def _csv(images: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for image in images:
        for found in image["detections"]:
            head = (image["file"], image["width"], image["height"])
            row = (found["class"], found["label"], found["score"], *found["box_xyxy"])
            writer.writerow((*head, *row))
    return stream.getvalue()
