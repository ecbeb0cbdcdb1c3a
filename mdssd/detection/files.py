"""Detecting objects in files: pictures with boxes, and the boxes as JSON or CSV."""

from __future__ import annotations

import glob
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.detection.detector import STAGES, Detector, Streamed
from mdssd.detection.tables import AddImage, open_table, table_entry
from mdssd.drawing import draw_detections, write_image
from mdssd.names import TABLES
from mdssd.system.progress import progress_bar


@dataclass
class DetectReport:
    """The result of `detect`.

    Attributes:
        failed: (file, reason) for each image that could not be read.
        images: one dict per other image: "file", "width", "height" and "detections", a list of
            dicts "class", "label", "score", "box_xyxy" (pixels). Empty without `keep_images`.
        timings: seconds per stage: decode (the time spent waiting, if worker processes decode),
            preprocess, network, detection_output, and draw, which includes writing the pictures.
        pictures, tables: the files that were written.
        image_count, detection_count: the number of images and of detections in them.
    """

    failed: list[tuple[str, str]]
    images: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    image_count: int = 0
    detection_count: int = 0

    def table(self, failures: bool = True) -> str:
        """Return the counts, the time per stage and the files as text, with failures if asked."""
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
    """Detect objects in image files, and write pictures and tables of them into a folder.

    A file that cannot be read is reported, and the others continue. If none can be read, nothing
    is written. Ctrl-C leaves complete tables of the images that were done.

    Args:
        detector: the detector. Its own score_threshold applies first.
        sources: image files, folders (the images directly in them, by name), or glob patterns.
        out_dir: created if it is missing. It receives `<name>.jpg` with the boxes drawn, if `draw`
            is set, and detections.json or detections.csv. Files of these names are replaced, each
            at once or not at all.
        score_threshold: the least score of what is drawn and written.
        draw: whether to draw pictures.
        formats: the tables to write: "json", "csv" or both.
        workers: processes that read the images, as in `Detector.stream`. None starts none for a
            single batch.
        keep_images: whether the report holds the detections too. Without them memory does not
            grow with the number of files.
        progress: whether to show a progress bar, and failures when they happen.

    Raises:
        ValueError: there is no image, out_dir holds one of the images (a picture could replace
            it), or an argument is out of range. Nothing is written then.
        KeyboardInterrupt: Ctrl-C; the message says how many images were done.

    Example:
        >>> import tempfile
        >>> import mdssd, numpy as np
        >>> from mdssd.detection.files import detect
        >>> from mdssd.drawing import write_image
        >>> detector = mdssd.Detector(mdssd.ssd300(2, width=0.0625))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_image(np.zeros((60, 80, 3), np.uint8), f"{folder}/photo.png")
        ...     report = detect(detector, [folder], f"{folder}/found", progress=False)
        >>> report.image_count, [path.name for path in report.tables]
        (1, ['detections.json'])
    """
    _check_arguments(sources, score_threshold, formats)
    files, failed = _find_images(sources)
    if not files:
        reasons = "; ".join(reason for _, reason in failed) or "no source was given"
        raise ValueError(f"detect: no image found: {reasons}")
    out = Path(out_dir)
    _check_out(out, files)
    if workers is None and len(files) <= detector.batch_size:
        workers = 0
    job = _Job(detector, out, score_threshold, draw, keep_images, DetectReport(failed))
    job.run(files, formats, workers, progress)
    return job.report


def _check_arguments(sources: Any, score_threshold: float, formats: Sequence[str]) -> None:
    if isinstance(formats, str) or any(name not in TABLES for name in formats):
        raise ValueError(f"detect: formats: expected some of {list(TABLES)}, got {formats!r}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"detect: score_threshold: expected 0 to 1, got {score_threshold}")
    if isinstance(sources, (str, os.PathLike)):
        raise TypeError(f"detect: sources: expected a list of paths, got {sources!r}")


@dataclass
class _Job:
    """One call of `detect`."""

    detector: Detector
    out: Path
    score_threshold: float
    draw: bool
    keep_images: bool
    report: DetectReport

    def run(
        self, files: Sequence[Path], formats: Sequence[str], workers: int | None, progress: bool
    ) -> None:
        report, detector = self.report, self.detector
        names = _picture_names(files) if self.draw else {}
        before = dict(detector.timings)
        interrupted = False
        with ExitStack() as stack:
            bar = progress_bar(desc="detect", total=len(files), unit="image", visible=progress)
            stack.enter_context(bar)
            stack.enter_context(detector.separate_stages())
            results = detector.stream(files, workers=workers, with_images=self.draw)
            stack.enter_context(closing(results))
            forms = dict.fromkeys(formats)
            tables = [stack.enter_context(open_table(self.out, f, report.tables)) for f in forms]
            for _, reason in report.failed if progress else ():
                bar.write(f"failed: {reason}")
            try:
                for result in results:
                    if result.error is None:
                        self._add(result, names.get(result.source), tables)
                    else:
                        report.failed.append((str(result.source), str(result.error)))
                        if progress:
                            bar.write(f"failed: {result.error}")
                    bar.update()
            except KeyboardInterrupt:  # raised again once the tables are closed
                interrupted = True
        if interrupted:
            where = "".join(f"; boxes in {path}" for path in report.tables)
            raise KeyboardInterrupt(f"{report.image_count} of {len(files)} images done{where}")
        stages = {stage: detector.timings[stage] - before[stage] for stage in STAGES}
        report.timings = stages | report.timings

    def _add(self, result: Streamed, name: str | None, tables: Sequence[AddImage]) -> None:
        """Draw and write one image."""
        report, classes = self.report, self.detector.classes
        result = _above(result, self.score_threshold)
        if name is not None:
            _draw(report, self.out / name, result, classes)
        entry = table_entry(result, classes)
        with _uninterrupted():  # so that all tables and the counts agree
            for add in tables:
                add(entry)
            report.image_count += 1
            report.detection_count += len(entry["detections"])
            if self.keep_images:
                report.images.append(entry)


def _find_images(
    sources: Sequence[str | os.PathLike[str]],
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Return the files that the sources name, each once, and (source, reason) if it names none."""
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
    """Return a unique name for the picture of each file; equal stems get a number."""
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
    """Delay Ctrl-C until the block ends. It can only arrive in the main thread."""
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


def _draw(report: DetectReport, path: Path, result: Streamed, classes: Sequence[str]) -> None:
    began = time.perf_counter()
    assert result.image is not None
    found = result.found
    picture = draw_detections(
        result.image, found["boxes"], found["labels"], found["scores"], classes
    )
    write_image(picture, path)
    report.pictures.append(path)
    report.timings["draw"] = report.timings.get("draw", 0.0) + time.perf_counter() - began
