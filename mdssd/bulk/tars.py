"""Images in tar files, as WebDataset has them: which there are, and reading a range of them.

The images are read one by one from their places in the file, which is never read as a whole and
never unpacked: names, links and devices in it mean nothing to the disk.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from mdssd.bulk.places import open_source
from mdssd.data import DataError
from mdssd.data.images import IMAGE_SUFFIXES, ImageLimits
from mdssd.system.files import format_bytes

TAR = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TARS = (TAR, *_PACKED)
_STARTS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 512
_MOST_HEADER = 1 << 20  # bytes of a long name or of other facts before a member
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_NAMES = 1_000_000


def expanded(name: str) -> Iterator[str]:
    """Yield the names that a name with ranges stands for, as a shell does; others as they are.

    Only names of tar files may have ranges.

    Raises:
        ValueError: a range ends before it begins, or has too many numbers.

    Example:
        >>> from mdssd.bulk.tars import expanded
        >>> list(expanded("a-{08..11}.tar"))
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']
    """
    found = _RANGE.search(name) if name.lower().endswith(TARS) else None
    if found is None:
        yield name
        return
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MOST_NAMES:
        raise ValueError(
            f"detect: {name}: {found[0]}: expected a range that ends behind its beginning, of at "
            f"most {_MOST_NAMES:,} numbers"
        )
    padded = any(len(text) > 1 and text[0] == "0" for text in found.groups())
    width = max(map(len, found.groups())) if padded else 0
    for number in range(first, last + 1):
        yield from expanded(f"{name[: found.start()]}{number:0{width}}{name[found.end() :]}")


class Contents(NamedTuple):
    """What a tar file holds.

    Attributes:
        ranges: for each range of images, where its first one begins, and how many it has.
        others: how many members are no images, by the ends of their names.
        fault: the error of a damaged file, or None. The images before it are in the ranges.
    """

    ranges: list[tuple[int, int]]
    others: Counter[str]
    fault: DataError | None


def contents(file: str, most: int) -> Contents:
    """Read the headers of the members of a tar file.

    Args:
        file: its path or its address. At an address about all of it is read, piece by piece,
            unless its members are large.
        most: the most images in a range.

    Raises:
        OSError: the storage cannot be reached.
    """
    ranges: list[tuple[int, int]] = []
    others: Counter[str] = Counter()
    fault = None
    try:
        with open_source(file) as opened:
            for member in _members(opened, file, 0):
                if not _is_image(member):
                    others[os.path.splitext(member.name)[1].lower()] += not member.isdir()
                elif ranges and ranges[-1][1] < most:
                    ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
                else:
                    ranges.append((member.offset, 1))
    except DataError as error:
        fault = error
    return Contents(ranges, +others, fault)


def read_images(
    file: str, first: int, count: int, limits: ImageLimits
) -> Iterator[tuple[str, bytes | DataError]]:
    """Yield the names of images in a tar file, each with its bytes or why it cannot be read.

    Args:
        file: the path or the address of the tar file.
        first, count: one of the ranges of `contents`.
        limits: an image may have ten bytes for each pixel.

    Raises:
        DataError: the tar file cannot be read, or no longer as it was planned.
        OSError: the storage cannot be reached.
    """
    with open_source(file) as opened:
        for member in _members(opened, file, first):
            if _is_image(member):
                name = f"{file}#{member.name}"
                fault = _fault(member, limits)
                opened.seek(member.offset_data)
                yield name, DataError(f"{name}: {fault}") if fault else opened.read(member.size)
                count -= 1
                if not count:
                    return
    raise DataError(f"{file}: has changed since the job was planned; it has fewer images")


def _is_image(member: tarfile.TarInfo) -> bool:
    """Return whether a member counts as an image, as a file in a folder does."""
    name = member.name.rpartition("/")[2]
    image = not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
    return image and not member.isdir()


def _fault(member: tarfile.TarInfo, limits: ImageLimits) -> str:
    """Return why a member that counts as an image is not read, or ""."""
    if member.islnk() or member.issym():
        return f"is a link to {member.linkname}, and links in tar files are not followed"
    if not member.isreg() or member.issparse():
        return "is no plain file in the tar file"
    most = 10 * limits.max_pixels
    if member.size > most:
        return (
            f"has {format_bytes(member.size)}, expected at most {format_bytes(most)}; the limit is "
            "ten bytes for each pixel of --max-pixels"
        )
    return ""


def _members(file: BinaryIO, name: str, first: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file from the one that begins at a byte.

    Raises:
        DataError: it is damaged there, which is only found behind the members before.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(first)
    start = file.read(8)  # the name of a member, unless the file is compressed
    kind = next((kind for mark, kind in _STARTS.items() if start.startswith(mark)), None)
    if kind is not None and first == 0:
        raise DataError(
            f"{name}: is compressed by {kind}, expected a plain tar file, in which each image can "
            "be reached; unpack it"
        )
    file.seek(first)
    at = first
    try:
        tar = tarfile.open(fileobj=_Headers(file), mode="r:")  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            if tar.offset <= at:
                raise tarfile.ReadError("a member of negative size")
            if not member.issparse() and member.offset_data + member.size > length:
                raise DataError(f"{name}#{member.name}: the tar file ends within this member")
            at = tar.offset
            yield member
            tar.members.clear()  # which would grow
    except (DataError, OSError):
        raise
    except Exception as error:  # damaged headers lead to many types
        raise DataError(_damaged(name, at, str(error))) from None
    # tarfile takes a damaged header for the end.
    file.seek(at)
    block = file.read(_BLOCK)
    if not block:
        raise DataError(f"{name}: ends without the mark of its end, so images may be missing")
    if block.count(0) < _BLOCK:
        raise DataError(_damaged(name, at, "no header of a member"))


def _damaged(name: str, at: int, reason: str) -> str:
    if not at:
        return f"{name}: is damaged, or no tar file ({reason})"
    return f"{name}: is damaged at byte {at:,}, and what follows is not read ({reason})"


class _Headers:
    """A file as tarfile sees it, which reads its headers: one of a huge size is refused."""

    def __init__(self, file: Any) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> Any:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)
