"""The plan of a job: which images there are, in shards, each of which one worker takes as a whole.

The plan is written before the work begins. A job that is started again follows it, so that each
image keeps its shard, whatever has happened to the folders meanwhile.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mdssd.bulk.places import find_files, is_address, open_parquet
from mdssd.bulk.tars import TAR, TARS, contents, expanded
from mdssd.data import DataError
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.detection.sources import STDIN, find_images
from mdssd.system.text import plural

_PARQUET = ".parquet"
TIFF = (".tif", ".tiff")
IMAGE, ROWS, MEMBERS, WINDOWS, FAULT = "image", "rows", "members", "windows", "fault"
# So many files are opened for the plan at once, as a storage may be slow.
_OPENED_AT_ONCE, _WAITING = 16, 1000


class Part(NamedTuple):
    """A part of a shard.

    Attributes:
        kind: "image", a file; "rows", a row group of a Parquet file with images; "members", some
            images of a tar file; "windows", some windows of a raster; "fault", a source that names
            no image.
        file: the path or address.
        group: the number of the row group or of the first window, or the byte of the tar file at
            which the first image begins.
        images: the number of images; a raster counts with its first windows.
        reason: why a source names no image.
        windows, of: the number of windows, and that of all windows of the raster.
        home: the number of the shard with the first windows of the raster.
    """

    kind: str
    file: str
    group: int = 0
    images: int = 1
    reason: str = ""
    windows: int = 0
    of: int = 0
    home: int = 0


class Shard(NamedTuple):
    """What a worker takes at once, and whose results are one file.

    Attributes:
        number: from 0.
        parts: what it holds.
    """

    number: int
    parts: list[Part]

    @property
    def images(self) -> int:
        return sum(part.images for part in self.parts)

    @property
    def file(self) -> str:
        """The name of the file with the results; shards of one raster have one."""
        windows = self.parts and self.parts[0].kind == WINDOWS
        return f"part-{self.parts[0].home if windows else self.number:08}.parquet"


def find_parts(
    sources: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool,
    out: str,
    cut: Callable[[Part], list[Part]] | None = None,
    most: int = 256,
) -> tuple[list[Part], list[str]]:
    """Find the images that the sources name.

    Args:
        sources: as in `bulk.detect`.
        recursive: whether the folders below a folder are searched too.
        out: a local folder that this search leaves out, because results are written there.
        cut: divides a TIFF file into parts; None leaves it whole.
        most: the most images in a part of a tar file.

    Returns:
        The parts, in the order of the sources, each file once; and lines about what was left out.
    """
    names = [os.fspath(source) for source in sources]
    if STDIN in names:
        raise ValueError("detect: sources: standard input cannot be read on Ray; use @list.txt")
    files: dict[str, Part] = {}
    left_out: list[str] = []
    for name in chain.from_iterable(map(expanded, names)):
        if is_address(name):
            found = _at_address(name, recursive)
        elif name.lower().endswith((_PARQUET, *TARS)):
            found = _files_of(name)
        else:
            found = _on_disk(name, recursive, out, left_out)
        for part in found:
            key = os.path.realpath(part.file) if not is_address(part.file) else part.file
            files.setdefault(key, part)
    others: Counter[str] = Counter()
    parts: list[Part] = []
    for inside, beside in _looked_into(files.values(), cut, most):
        parts += inside
        others += beside
    if others:
        ends = ", ".join(
            f"{count:,} {end or 'without one'}" for end, count in others.most_common(5)
        )
        count = plural(others.total(), "member")
        left_out.append(f"left out {count} of tar files by the ends of their names: {ends}")
    return parts, left_out


def _looked_into(
    parts: Iterable[Part], cut: Callable[[Part], list[Part]] | None, most: int
) -> Iterator[tuple[list[Part], Counter[str]]]:
    """Yield the parts of each file, and how many members of a tar file are no images."""

    def look(part: Part) -> tuple[list[Part], Counter[str]]:
        name = part.file.lower()
        if name.endswith(TARS):
            return _members(part.file, most)
        if name.endswith(_PARQUET):
            return list(_row_groups(part.file)), Counter()
        return [part] if cut is None else cut(part), Counter()

    def opens(part: Part) -> bool:
        ends = (_PARQUET, *TARS) if cut is None else (_PARQUET, *TARS, *TIFF)
        return part.kind == IMAGE and part.file.lower().endswith(ends)

    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
        try:
            for part in parts:
                waiting.append(threads.submit(look, part) if opens(part) else part)
                if len(waiting) > _WAITING:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:  # after an error, or Ctrl-C, no further file is opened
            threads.shutdown(wait=False, cancel_futures=True)


def _result(waited: Any) -> tuple[list[Part], Counter[str]]:
    return ([waited], Counter()) if isinstance(waited, Part) else waited.result()


def _on_disk(name: str, recursive: bool, out: str, left_out: list[str]) -> Iterator[Part]:
    tables = _tables_in(name)
    found = find_images([name], recursive=recursive, out=out)
    yield from (Part(IMAGE, os.path.abspath(file)) for file in (*found.files, *tables))
    if not tables:
        left_out += found.left_out
        yield from (Part(FAULT, source, reason=reason) for source, reason in found.failed)


def _tables_in(folder: str) -> list[str]:
    """Return the Parquet and tar files in a folder, sorted; an empty list if it is no folder."""
    if not os.path.isdir(folder):
        return []
    files = map(str, Path(folder).iterdir())
    return sorted(file for file in files if file.lower().endswith((_PARQUET, TAR)))


def _files_of(name: str) -> Iterator[Part]:
    """Yield the Parquet or tar files that a path or a pattern names."""
    path = Path(name)
    if path.exists():
        yield Part(IMAGE, os.path.abspath(name))
        return
    top = Path(path.anchor or ".")
    found = sorted(top.glob(str(path.relative_to(path.anchor))))
    yield from (Part(IMAGE, os.path.abspath(file)) for file in found)
    if not found:
        yield Part(FAULT, name, reason=f"{name}: no such file")


def _at_address(name: str, recursive: bool) -> Iterator[Part]:
    files, named = find_files(name, recursive=recursive)
    endings = (*IMAGE_SUFFIXES, _PARQUET, TAR)
    chosen = [file for file in files if named or file.lower().endswith(endings)]
    yield from (Part(IMAGE, file) for file in chosen)
    if not chosen:
        yield Part(FAULT, name, reason=f"{name}: names no image, no Parquet file and no tar file")


def _members(file: str, most: int) -> tuple[list[Part], Counter[str]]:
    """Return the parts of a tar file, and how many of its members are no images."""
    inside = contents(file, most)
    parts = [Part(MEMBERS, file, first, count) for first, count in inside.ranges]
    if inside.fault is not None:
        parts.append(Part(FAULT, file, reason=str(inside.fault)))
    if not parts:
        parts.append(Part(FAULT, file, reason=f"{file}: has no image"))
    return parts, inside.others


def _row_groups(file: str) -> Iterator[Part]:
    try:
        with open_parquet(file) as table:
            for group in range(table.num_row_groups):
                yield Part(ROWS, file, group, table.metadata.row_group(group).num_rows)
    except DataError as error:
        yield Part(FAULT, file, reason=str(error))


def into_shards(parts: Iterable[Part], images: int) -> list[Shard]:
    """Put parts into shards of so many images.

    A shard has fewer images if the next part would not fit, and more only if it is one part. The
    parts of a raster have shards of their own.
    """
    shards: list[Shard] = []
    home, alone = 0, True
    for part in parts:
        windows = part.kind == WINDOWS
        if alone or windows or shards[-1].images + part.images > images:
            shards.append(Shard(len(shards), []))
        alone = windows
        if windows:
            home = len(shards) - 1 if part.group == 0 else home
            part = part._replace(home=home)
        shards[-1].parts.append(part)
    return shards


def plan_bytes(shards: Iterable[Shard]) -> bytes:
    """Return a plan as it is stored: JSON, one line for each shard."""
    return "".join(f"{shard_text(shard)}\n" for shard in shards).encode()


def read_plan(data: bytes) -> list[Shard]:
    """Return the shards of a plan."""
    return [shard_of(line) for line in data.decode().splitlines()]


def shard_text(shard: Shard) -> str:
    """Return a shard as a line of JSON."""
    return json.dumps([shard.number, shard.parts])


def shard_of(text: str) -> Shard:
    """Return the shard of a line."""
    number, parts = json.loads(text)
    listed: list[Any] = parts
    return Shard(number, [Part(*part) for part in listed])
