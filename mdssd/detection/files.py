"""Detecting objects in files: pictures with boxes, and the boxes in the formats of other tools."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdssd.data.raster_files import NEEDS, has_rasterio
from mdssd.data.rasters import is_georeferenced
from mdssd.detection.coco_results import read_coco_ids
from mdssd.detection.detector import STAGES, Detector
from mdssd.detection.image_files import ImageFiles
from mdssd.detection.outputs import CLASSES, MARK, Outputs, unique_stems
from mdssd.detection.reading import ImageFile, Streamed, name_of
from mdssd.detection.sources import STDIN, Sources, find_images
from mdssd.detection.tables import Table, shown, table_entry
from mdssd.drawing import draw_detections, encode_image
from mdssd.names import TABLES
from mdssd.system.progress import progress_bar
from mdssd.system.stop import StopRequest, Terminated
from mdssd.system.text import plural, printable

# Pictures with fewer pixels on their shorter side have colours at full resolution.
_FINE = 1200
# An image of so many tiles has a progress bar of its own.
_MANY_TILES = 200


@dataclass
class DetectReport:
    """The result of `detect`.

    Attributes:
        failed: (file, reason) for each image that could not be read.
        left_out: a line for each folder that holds more than images, which says what, for each
            list that names files again, and for label files that got another name.
        images: one dict per other image: "file", "width", "height" and "detections", a list of
            dicts "class", "label", "score", "box_xyxy" (pixels). Empty without `keep_images`.
        timings: seconds per stage: decode (the time spent waiting, if worker processes decode),
            preprocess, network, detection_output, and draw, which includes writing the pictures.
        pictures: the pictures that were written.
        tables: the files with boxes that were written, or the folder of those of single images.
        image_lists: the COCO file that lists the images, if one was written.
        image_count, detection_count: the number of images and of detections in them.
        guesses: what reading images had to guess, such as that the first page is meant: in how
            many images, and the first of these.
    """

    failed: list[tuple[str, str]]
    images: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    image_count: int = 0
    detection_count: int = 0
    left_out: list[str] = field(default_factory=list)
    guesses: dict[str, tuple[int, str]] = field(default_factory=dict)
    image_lists: list[Path] = field(default_factory=list)

    def table(self, failures: bool = True) -> str:
        """Return the counts, the time per stage and the files as text.

        Args:
            failures: whether to add what was left out and the images that could not be read.
        """
        detections = plural(self.detection_count, "detection")
        lines = [f"{detections} in {plural(self.image_count, 'image')}"]
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
            count = plural(len(self.pictures), "picture")
            lines.append(f"{count} in {os.path.commonpath([p.parent for p in self.pictures])}")
        lines += [f"boxes in {path}" for path in self.tables]
        lines += [f"images and classes in {path}" for path in self.image_lists]
        for guess, (times, first) in self.guesses.items():
            lines.append(f"{times} times: {first}: {guess}" if times > 1 else f"{first}: {guess}")
        if failures:
            lines += self.left_out
            lines += [f"failed: {reason}" for _, reason in self.failed]
        return "\n".join(map(printable, lines))


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
    classes: Sequence[str] | None = None,
    picture_scale: float = 1.0,
    overwrite: bool = False,
    recursive: bool = False,
    coco_images: str | os.PathLike[str] | None = None,
    yolo_scores: bool = False,
) -> DetectReport:
    """Detect objects in image files, and write pictures and tables of them into a folder.

    A file that cannot be read is reported, and the others continue. If none can be read, nothing
    is written. Ctrl-C, SIGTERM and a full disk leave complete tables of the images that were done.
    Temporary files that a killed run has left in the folder are removed.

    Args:
        detector: the detector. Its own score_threshold applies first.
        sources: image files, folders (their images, by name), glob patterns, "@list.txt" for a
            list of files, one per line and relative to the list's folder, or "-" for standard
            input: an image, or such a list, relative to the current folder.
        out_dir: created if it is missing. It receives `<name>.jpg` with the boxes drawn, if `draw`
            is set, and the tables. Those of an earlier run are replaced, each at once, except for
            label files, which may have been corrected by hand.
        score_threshold: the least score of what is drawn and written.
        draw: whether to draw pictures.
        formats: what to write, of "json", "csv", "jsonl", "coco", "yolo" and "geojson".
        workers: processes that read images, as in `Detector.stream`. None: none for one batch.
        keep_images: whether the report holds the detections too. Without them memory holds only
            the names of the files.
        progress: whether to show a progress bar, what is left out and replaced, and failures when
            they happen.
        classes: the classes that are drawn and written; None for all.
        picture_scale: the size of the pictures relative to the images.
        overwrite: whether files in out_dir that `detect` has not written may be replaced.
        recursive: whether the folders below the folders are searched too. out_dir gets the same.
        coco_images: for the format "coco", a COCO file that has the numbers of the images, which
            are found by their names, and of the classes. None numbers them from 1.
        yolo_scores: whether the lines of the format "yolo" end with the score.

    Raises:
        ValueError: there is no image, out_dir holds one of the images or a file that would be
            replaced and that `detect` has not written, or an argument is wrong. Nothing is
            written then.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the message says how many images were done.
        OSError: the folder cannot be written or the disk is full; the message says the same.

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
    _check_arguments(detector, sources, score_threshold, formats, classes, picture_scale)
    _check_formats(formats, coco_images, yolo_scores)
    found = find_images(sources, recursive=recursive, out=out_dir)
    outputs = _outputs(found, out_dir, formats, detector, draw, yolo_scores)
    if coco_images is not None:
        outputs.coco_ids = read_coco_ids(coco_images, found.files, classes or detector.classes)
    replaced = outputs.check(found, overwrite)
    outputs.remove_leftovers()
    report = DetectReport(found.failed, left_out=[*found.left_out, *outputs.renamed()])
    labels = [k for k, name in enumerate(detector.classes, 1) if classes is None or name in classes]
    job = _Job(detector, outputs, score_threshold, labels, picture_scale, keep_images, report)
    job.run(found, workers, progress, replaced)
    return report


def _outputs(
    found: Sources,
    out: str | os.PathLike[str],
    formats: Sequence[str],
    detector: Detector,
    draw: bool,
    yolo_scores: bool,
) -> Outputs:
    """Return what will be written where, if there is an image."""
    if not found.files:
        reasons = "; ".join(reason for _, reason in found.failed) or "no source was given"
        raise ValueError(f"detect: no image found: {reasons}")
    stems = unique_stems(found, [Path(CLASSES).stem] if "yolo" in formats else [])
    forms = list(dict.fromkeys(formats))
    classes, upright = detector.classes, detector.upright
    what = (Path(out), forms, classes, stems)
    return Outputs(*what, draw, yolo_scores=yolo_scores, upright=upright)


def _check_arguments(
    detector: Detector,
    sources: Any,
    score_threshold: float,
    formats: Sequence[str],
    classes: Sequence[str] | None,
    picture_scale: float,
) -> None:
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"detect: score_threshold: expected 0 to 1, got {score_threshold}")
    if not 0 < picture_scale <= 100:
        raise ValueError(f"detect: picture_scale: expected 0 to 100, got {picture_scale}")
    if isinstance(sources, (str, os.PathLike)):
        raise TypeError(f"detect: sources: expected a list of paths, got {sources!r}")
    if isinstance(classes, str):
        raise TypeError(f"detect: classes: expected a list of names, got {classes!r}")
    unknown = [name for name in classes or () if name not in detector.classes]
    if unknown:
        raise ValueError(
            f"detect: classes: the detector does not know {', '.join(map(repr, unknown))}; it "
            f"knows {', '.join(detector.classes)}"
        )


def _check_formats(
    formats: Sequence[str], coco_images: str | os.PathLike[str] | None, yolo_scores: bool
) -> None:
    if isinstance(formats, str) or any(name not in TABLES for name in formats):
        raise ValueError(f"detect: formats: expected some of {list(TABLES)}, got {formats!r}")
    if coco_images is not None and "coco" not in formats:
        raise ValueError("detect: coco_images: is for the format 'coco', which is not written")
    if yolo_scores and "yolo" not in formats:
        raise ValueError("detect: yolo_scores: is for the format 'yolo', which is not written")


@dataclass
class _Job:
    """One call of `detect`."""

    detector: Detector
    outputs: Outputs
    score_threshold: float
    labels: list[int]
    picture_scale: float
    keep_images: bool
    report: DetectReport

    def run(self, found: Sources, workers: int | None, progress: bool, replaced: str) -> None:
        report, detector, files = self.report, self.detector, found.files
        if workers is None and len(files) <= detector.batch_size:
            workers = 0
        images = (
            ImageFile(f, detector.upright, data=found.stdin) if f == STDIN else f for f in files
        )
        before = dict(detector.timings)
        ended: BaseException | None = None
        with ExitStack() as stack:
            bar = progress_bar(desc="detect", total=len(files), unit="image", visible=progress)
            stack.enter_context(bar)
            stack.enter_context(detector.separate_stages())
            stop = stack.enter_context(StopRequest())
            results = detector.stream(images, workers=workers, with_images=self.outputs.draw)
            stack.enter_context(closing(results))
            tables = self.outputs.open(stack, report.tables, report.image_lists)
            stack.enter_context(self._each_tile(stop, progress))
            if progress:
                lines = [*report.left_out, *replaced.splitlines()]
                for line in [*lines, *(f"failed: {reason}" for _, reason in report.failed)]:
                    bar.write(line)
            try:
                for result in results:
                    if result.error is None:
                        self._add(result, tables)
                    else:
                        report.failed.append((name_of(result.source, ""), str(result.error)))
                        if progress:
                            bar.write(f"failed: {result.error}")
                    del result  # its image may be large
                    bar.update()
                    stop.check()
            except (KeyboardInterrupt, SystemExit, OSError) as error:
                ended = error  # it is raised again once the tables are closed
        if ended is not None:
            where = "".join(f"; boxes in {path}" for path in report.tables)
            raise _with_note(ended, f"{report.image_count} of {len(files)} images done{where}")
        stages = {stage: detector.timings[stage] - before[stage] for stage in STAGES}
        report.timings = stages | report.timings

    @contextmanager
    def _each_tile(self, stop: StopRequest, progress: bool) -> Iterator[None]:
        """Within the block, count the tiles of large images, and stop also in the middle of one."""
        before = self.detector.on_tile
        bar: Any = None

        def on_tile(done: int, total: int) -> None:
            nonlocal bar
            stop.check()
            if before is not None:
                before(done, total)
            if not progress or total < _MANY_TILES:
                return
            if done == 0:
                if bar is not None:  # of an image that is damaged further down
                    bar.close()
                bar = progress_bar(desc="tiles", total=total, unit="tile", leave=False)
            if bar is not None:
                bar.update()
                if done + 1 == total:
                    bar.close()

        self.detector.on_tile = on_tile
        try:
            yield
        finally:
            self.detector.on_tile = before
            if bar is not None:
                bar.close()

    def _add(self, result: Streamed, tables: Sequence[Table | ImageFiles]) -> None:
        """Draw and write one image."""
        report, classes = self.report, self.detector.classes
        result = shown(result, self.score_threshold, self.labels)
        if self._lacks_map(result):
            guess = f"is a GeoTIFF, but its boxes are in pixels: converting them {NEEDS}"
            result = result._replace(guess="; ".join(filter(None, (result.guess, guess))))
        if self.outputs.draw:
            began = time.perf_counter()
            picture = self.outputs.picture(name_of(result.source, ""))
            picture.parent.mkdir(parents=True, exist_ok=True)
            data, guess = _drawn(result, classes, self.picture_scale)
            result = result._replace(guess="; ".join(filter(None, (result.guess, guess))))
            self.outputs.files.write(picture, data)
            report.pictures.append(picture)
            spent = time.perf_counter() - began
            report.timings["draw"] = report.timings.get("draw", 0.0) + spent
        entry = table_entry(result, classes)
        added: list[Table | ImageFiles] = []
        try:
            for table in tables:
                table.add(entry)
                added.append(table)
        except OSError:
            for table in added:  # so that all tables hold the same images
                table.undo()
            raise
        report.image_count += 1
        report.detection_count += len(entry["detections"])
        if result.guess:
            count, first = report.guesses.get(result.guess, (0, name_of(result.source, "")))
            report.guesses[result.guess] = (count + 1, first)
        if self.keep_images:
            report.images.append(entry)

    def _lacks_map(self, result: Streamed) -> bool:
        """Return whether an image's GeoJSON has pixels only because a package is missing."""
        if "geojson" not in self.outputs.formats or has_rasterio():
            return False
        file = name_of(result.source, "")
        return file != STDIN and is_georeferenced(file)


def _with_note(error: BaseException, note: str) -> BaseException:
    """Return an error that says, besides its cause, what was done before it."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return OSError(error.errno, f"{reason}; {note}", error.filename)
    if isinstance(error, Terminated):
        return Terminated(note)
    if isinstance(error, KeyboardInterrupt):
        return type(error)(note)
    return error


def _drawn(result: Streamed, classes: Sequence[str], scale: float) -> tuple[bytes, str]:
    """Return the file of a picture with the boxes, and in words what is special about it."""
    assert result.image is not None
    found, note = result.found, ""
    boxes, reduction = found["boxes"], result.image.shape[0] / result.size[0]
    if reduction < 1:  # it was read by windows
        boxes, scale = boxes * reduction, min(scale / reduction, 1)
        note = f"is too large for a picture of its own size; drawn at {reduction * scale:.1%} of it"
    picture = draw_detections(
        result.image, boxes, found["labels"], found["scores"], classes, scale=scale
    )
    # Lines of a large picture are so thick that colours at half the resolution do not blur them.
    data = encode_image(picture, ".jpg", fine=min(picture.shape[:2]) < _FINE)
    at = 4 + int.from_bytes(data[4:6], "big")  # behind the first segment, which names the format
    return data[:at] + MARK + data[at:], note
