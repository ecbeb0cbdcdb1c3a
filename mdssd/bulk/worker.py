"""What a process of a Ray cluster does: it takes a shard, detects, and writes one file."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import torch

from mdssd import ops
from mdssd.bulk.places import Place, is_address, open_parquet, read_bytes
from mdssd.bulk.plan import FAULT, MEMBERS, ROWS, TIFF, Part, Shard, shard_of
from mdssd.bulk.record import TRIES, Begun, write_begun
from mdssd.bulk.rows import Rows
from mdssd.bulk.settings import Settings
from mdssd.bulk.tars import read_images
from mdssd.bulk.windows import (
    WindowDetector,
    file_of,
    folder_of,
    image_at,
    is_part,
    of_raster,
    unreadable,
)
from mdssd.data import DataError
from mdssd.detection.reading import ImageFile, Streamed, name_of
from mdssd.detection.tables import shown, table_entry
from mdssd.system.memory import keep_memory

_KILLED = f"the process that worked on it was killed, in {TRIES} tries"
_FETCHED_AHEAD = 16  # images that are read from an address at the same time
_READ_AT_ONCE = 16  # rows of a Parquet file
_WHOLE = -1  # stands for all images of a shard together


class Worker:
    """Detects in the images of shards, and writes their results.

    Args:
        model: a reference to the network, which the node's object store holds once.
        settings: how to detect.
        record: the handle of the `Record`.
    """

    def __init__(self, model: Any, settings: Settings, record: Any) -> None:
        import ray

        pool = settings.pool
        torch.set_num_threads(pool.threads)
        keep_memory()
        self._get, self._record, self._settings = ray.get, record, settings
        self._place = Place(settings.out)
        if pool.backend:
            self._backend = ops.backend(pool.backend)
            self._backend.__enter__()  # for as long as this process lives
        self._detector = WindowDetector(ray.get(model), device=pool.device, **settings.detector)
        self._detector.limits, self._detector.upright = settings.limits, settings.upright

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Take the shards of a batch; return a summary of each, as JSON."""
        summaries = [self._try(shard_of(str(text))) for text in batch["shard"]]
        return {"summary": [json.dumps(summary) for summary in summaries]}

    def _try(self, shard: Shard) -> dict[str, Any]:
        """Take a shard; the summary says what went wrong, as of a storage that does not answer."""
        try:
            return self._take(shard)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return {"shard": shard.number, "done": False, "error": reason}

    def _take(self, shard: Shard) -> dict[str, Any]:
        begun = Begun(*self._get(self._record.begin.remote(shard.number)))
        if begun.ending:
            return {"shard": shard.number, "done": False}
        write_begun(self._place, shard.number, begun.tries)
        began, used, before = time.perf_counter(), time.process_time(), dict(self._detector.timings)
        rows, failed, guesses = Rows(), [], Counter[str]()
        first: dict[str, str] = {}
        for result, tiles in self._results(shard, begun):
            if isinstance(result, Failed):
                failed.append(result)
                rows.add_failed(*result)
                continue
            rows.add(table_entry(result, self._detector.classes), tiles)
            if result.guess:
                guesses[result.guess] += 1
                first.setdefault(result.guess, name_of(result.source, ""))
        if not is_part(shard.parts[0]) or rows.images + rows.failed:
            self._place.write(shard.file, rows.to_parquet())
        self._get(self._record.done.remote(shard.number))
        after = self._detector.timings
        return {
            "shard": shard.number,
            "done": True,
            "images": rows.images,
            "detections": rows.detections,
            "failed": failed,
            "guesses": {guess: [count, first[guess]] for guess, count in guesses.items()},
            "seconds": {stage: after[stage] - before[stage] for stage in after},
            "wall": time.perf_counter() - began,
            "cpu": time.process_time() - used,
        }

    def _results(self, shard: Shard, begun: Begun) -> Iterator[tuple[Streamed | Failed, int]]:
        """Yield the result of each image of a shard, and the number of its tiles."""
        settings, tiling = self._settings, self._detector.tiling
        if is_part(shard.parts[0]):
            results: Iterator[Streamed | Failed] = self._raster(shard, begun)
        elif begun.careful:
            results = self._carefully(shard, begun)
        else:
            results = self._together(shard, ())
        for result in results:
            if isinstance(result, Failed):
                yield result, 0
            elif result.error is not None:
                yield Failed(name_of(result.source, ""), str(result.error)), 0
            else:
                height, width = result.size
                tiles = 0 if tiling is None else tiling.count(width, height)
                yield shown(result, settings.score_threshold, settings.labels), tiles

    def _together(self, shard: Shard, left_out: Sequence[int]) -> Iterator[Streamed | Failed]:
        """Yield the results of all images of a shard but some."""
        failed: list[Failed] = []
        images = self._images(shard, failed)
        chosen = (image for k, image in enumerate(images) if k not in left_out)
        given = (image for image in chosen if not isinstance(image, Failed))
        with closing(self._detector.stream(given, workers=self._settings.pool.readers)) as results:
            yield from results
        yield from failed

    def _carefully(self, shard: Shard, begun: Begun) -> Iterator[Streamed | Failed]:
        """Yield the results of a shard that has ended a process.

        Each image is tried alone, which shows the one that ends the process. Then all others are
        detected in batches as usual, so that they have the same results as ever; if that ends
        processes too, the results of the images alone are used.
        """
        alone: list[Streamed | Failed] = []
        ends = set(begun.given_up) - {_WHOLE}
        failed: list[Failed] = []
        for k, image in enumerate(self._images(shard, failed)):
            if k in ends:
                name = image.file if isinstance(image, Failed) else name_of(image, "")
                yield Failed(name, f"{name}: {_KILLED}")
            elif not isinstance(image, Failed):
                self._trying(shard, k)
                results = list(self._detector.stream([image], workers=0))
                self._get(self._record.tried.remote(shard.number, k))
                alone += results if _WHOLE in begun.given_up else []
        if _WHOLE in begun.given_up:
            yield from [*alone, *failed]
            return
        self._trying(shard, _WHOLE)
        yield from self._together(shard, sorted(ends))

    def _trying(self, shard: Shard, image: int) -> None:
        """Note that this process begins with an image alone, for it may be killed."""
        tries = self._get(self._record.trying.remote(shard.number, image))
        write_begun(self._place, shard.number, tries)

    def _raster(self, shard: Shard, begun: Begun) -> Iterator[Streamed]:
        """Detect in some windows of a raster; yield its result if they were the last."""
        (part,) = shard.parts
        place = Place(f"{self._place.name}/{folder_of(part)}")
        if file_of(part) not in set(place.names()):
            if begun.careful and not begun.given_up:
                self._trying(shard, 0)
            data = self._detector.find_apart(part) if not begun.given_up else killed(part)
            place.create()
            place.write(file_of(part), data)
        names = of_raster(place.names(), part)
        if names and self._get(self._record.may_join.remote(part.home, shard.number)):
            yield self._detector.join(part.file, [place.read(name) for name in names])

    def _images(self, shard: Shard, failed: list[Failed]) -> Iterator[str | ImageFile | Failed]:
        """Yield the images of a shard, or in its place why one cannot be read.

        Args:
            shard: the shard.
            failed: receives those that cannot be read.
        """
        for part in self._fetched(shard.parts):
            images: Iterable[Any] = [part]
            if isinstance(part, Part):
                images = self._rows(part) if part.kind == ROWS else self._members(part)
            for image in images:
                if isinstance(image, Failed):
                    failed.append(image)
                yield image

    def _fetched(self, parts: Sequence[Part]) -> Iterator[Part | str | ImageFile | Failed]:
        """Yield the images of parts, but parts of Parquet and tar files as they are."""
        remaining = iter(parts)
        with ThreadPoolExecutor(_FETCHED_AHEAD) as threads:
            waiting: list[Any] = []
            while True:
                for part in islice(remaining, _FETCHED_AHEAD - len(waiting)):
                    remote = is_address(part.file) and part.kind not in (ROWS, MEMBERS, FAULT)
                    waiting.append(threads.submit(self._fetch, part) if remote else part)
                if not waiting:
                    return
                first = waiting.pop(0)
                if not isinstance(first, Part):
                    yield first.result()
                elif first.kind == FAULT:
                    yield Failed(first.file, first.reason)
                else:
                    yield first if first.kind in (ROWS, MEMBERS) else first.file

    def _fetch(self, part: Part) -> ImageFile | Failed:
        try:
            if self._detector.tiling is not None and part.file.lower().endswith(TIFF):
                image = image_at(part.file, self._settings.upright)
                if self._settings.limits.is_raster(image.header()):
                    return image
            data = read_bytes(part.file, self._settings.limits)
            return ImageFile(part.file, self._settings.upright, data=data)
        except DataError as error:
            return Failed(part.file, str(error))

    def _members(self, part: Part) -> Iterator[ImageFile | Failed]:
        """Yield some images of a tar file."""
        try:
            images = read_images(part.file, part.group, part.images, self._settings.limits)
            for name, data in images:
                if isinstance(data, DataError):
                    yield Failed(name, str(data))
                else:
                    yield ImageFile(name, self._settings.upright, data=data)
        except DataError as error:
            yield Failed(part.file, str(error))

    def _rows(self, part: Part) -> Iterator[ImageFile | Failed]:
        """Yield the images in a row group of a Parquet file."""
        import pyarrow

        number = 0
        try:
            with open_parquet(part.file) as table:
                for row in range(part.group):
                    number += table.metadata.row_group(row).num_rows
                column = image_column(table.schema_arrow, part.file, self._settings.image_column)
                batches = table.iter_batches(
                    _READ_AT_ONCE, row_groups=[part.group], columns=[column]
                )
                for values in (batch.column(0) for batch in batches):
                    for value in values.to_pylist():
                        data = value.get("bytes") if isinstance(value, dict) else value
                        name = f"{part.file}#{number}"
                        number += 1
                        if data is None:
                            yield Failed(name, f"{name}: the row has no image")
                        else:
                            yield ImageFile(name, self._settings.upright, data=data)
        except DataError as error:
            yield Failed(part.file, str(error))
        except (OSError, pyarrow.ArrowException) as error:
            if isinstance(error, OSError) and is_address(part.file):
                raise  # the storage cannot be reached: a later run may read them
            name, reason = f"{part.file}#{number}", str(error).partition("\n")[0]
            yield Failed(name, f"{name}: this row and those behind it are damaged ({reason})")


class Failed(NamedTuple):
    """An image that cannot be read, and why."""

    file: str
    reason: str


def killed(part: Part) -> bytes:
    """Return what is found in windows of a raster that have ended the processes."""
    return unreadable(part, f"{part.file}: {_KILLED}")


def image_column(schema: Any, file: str, chosen: str | None) -> str:
    """Return the name of the column of a Parquet file that holds the bytes of images.

    Args:
        schema: the schema of the file.
        file: its name in messages.
        chosen: the name of the column, or None for the only one of a binary type, or with a field
            "bytes" of one, as Hugging Face's data sets have it.

    Raises:
        DataError: there is none, or more than one.
    """
    from pyarrow import types

    def binary(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [one.name for one in schema if binary(one.type)]
    if chosen is not None:
        if chosen not in found:
            raise DataError(
                f"{file}: has no column {chosen!r} of image bytes; its columns are "
                f"{', '.join(schema.names)}"
            )
        return chosen
    if len(found) != 1:
        which = f"columns {', '.join(found)}" if found else "no column"
        raise DataError(
            f"{file}: has {which} of image bytes, expected one; --image-column (image_column) "
            f"names it; its columns are {', '.join(schema.names)}"
        )
    return found[0]
