"""The image files that `detect` reads: files, folders, patterns, lists and standard input."""

from __future__ import annotations

import codecs
import glob
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.drawing.figures import shorten
from mdssd.system.files import format_bytes, read_regular
from mdssd.system.kinds import kind_of_bytes
from mdssd.system.text import plural

# The source that stands for standard input, and the beginning of one that names a list.
STDIN, LIST = "-", "@"
# The most bytes of a list and of standard input: some million names.
_MOST_BYTES = 256 << 20
# With more lines that name no file, a list is refused as a whole.
_MOST_FAULTS = 10_000
# The most characters of a name in a message.
_SHOWN = 300
# The suffixes, in lower case, of images and videos that cannot be read.
_UNREADABLE = frozenset(
    ".heic .heif .hif .jxl .jxr .psd .svg .eps .exr .hdr .tga .ico .dcm .fits .raw .dng .cr2 .cr3 "
    ".nef .arw .raf .orf .rw2 .pef .srw .mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp "
    ".mts .m2ts .ts .insv .ogv".split()
)


@dataclass
class Sources:
    """What the sources of `detect` name.

    Attributes:
        files: the image files, each once, with the folder below the output folder that receives
            its results: "" for that folder itself.
        failed: (source, reason) for each source, and each line of a list, that names no image.
        left_out: a line per folder that holds more than images, and per list with repetitions.
        stdin: the image that was read from standard input, whose name in `files` is "-".
        folders: the folders that hold the files, without symbolic links, each with the name of a
            file in it.
    """

    files: dict[str, str] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    stdin: bytes | None = None
    folders: dict[str, str] = field(default_factory=dict)
    _real_files: set[str] = field(default_factory=set, repr=False)
    _real_folders: dict[str, str] = field(default_factory=dict, repr=False)

    def add(self, file: str, below: str = "") -> bool:
        """Add a file. Return whether it is a new one, also under another name."""
        folder, name = os.path.split(file)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[folder], name)
        if os.path.islink(file):
            real = os.path.realpath(file)
        if real in self._real_files:
            return False
        self._real_files.add(real)
        self.files[file] = below
        self.folders.setdefault(self._real_folders[folder], name)
        self.folders.setdefault(os.path.dirname(real), name)
        return True


def find_images(
    sources: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> Sources:
    """Find the image files that the sources of `detect` name.

    Args:
        sources: image files, folders, glob patterns, "@list.txt" for a list of image files, and
            "-" for standard input: an image, or a list.
        recursive: whether the folders below a folder are searched too.
        out: a folder that this search leaves out, because results are written there.

    Returns:
        The files, in the order of the sources; those of a folder by name.

    Raises:
        ValueError: more than 10,000 lines of a list name no file.
    """
    result = Sources()
    for path in map(Path, sources):
        source = str(path)
        if source == STDIN:
            _read_stdin(result)
        elif path.is_dir():
            _search(result, source, recursive, None if out is None else os.path.realpath(out))
        elif path.exists():
            result.add(source)
        elif source.startswith(LIST):
            _read_list(result, source[len(LIST) :])
        elif glob.has_magic(source):
            found = [p for p in sorted(glob.glob(source, recursive=True)) if os.path.isfile(p)]
            for file in found:
                result.add(str(Path(file)))
            if not found:
                result.failed.append((source, f"{source}: matches no file"))
        else:
            result.failed.append((source, f"{source}: no such file or folder"))
    return result


@dataclass
class _Folder:
    """What a folder holds, or a folder and those below it: the images, and counts of the rest."""

    images: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    hidden: int = 0
    folders: int = 0
    others: int = 0

    def notes(self) -> str:
        """Return in words what is there besides images; "" if nothing is."""
        notes = []
        if count := self.unreadable_count:
            names = ", ".join(self.unreadable) + (", ..." if count > 3 else "")
            kind = "image or video" if count == 1 else "images or videos"
            notes.append(f"{count} {kind} of a format that cannot be read ({names})")
        if self.folders:
            notes.append(f"{plural(self.folders, 'sub-folder')} (--recursive reads them)")
        notes += [plural(self.hidden, "hidden file")] if self.hidden else []
        notes += [plural(self.others, "other file")] if self.others else []
        return ", ".join(notes)


def _search(result: Sources, source: str, recursive: bool, out: str | None) -> None:
    """Add the images in a folder, and in those below it if the search is recursive."""
    rest = _Folder()
    for folder, entries in _folders(result, source, recursive, out):
        below = os.path.relpath(folder, source)
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                rest.hidden += 1
            elif entry.is_dir():
                rest.folders += not recursive
            elif suffix in IMAGE_SUFFIXES:
                rest.images += 1
                result.add(str(Path(folder, entry.name)), "" if below == os.curdir else below)
            elif suffix in _UNREADABLE:
                rest.unreadable_count += 1
                rest.unreadable += [entry.name] if len(rest.unreadable) < 3 else []
            else:
                rest.others += 1
    note = rest.notes()
    result.left_out += [f"{source}: left out {note}"] if note else []
    if not rest.images:
        reason = f"{source}: the folder has no image ({', '.join(IMAGE_SUFFIXES)})"
        result.failed.append((source, reason + (f"; it has {note}" if note else "")))


def _folders(
    result: Sources, source: str, recursive: bool, out: str | None
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield a folder and, if the search is recursive, those below it, each with its entries.

    Links are followed, but each folder is visited once, so a circle of links ends.
    """
    waiting, seen = [source], set()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        if real == out and folder != source:
            result.left_out.append(f"{folder}: left out, because the results are written there")
            continue
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"{folder}: the folder cannot be read ({error.strerror})"
            result.failed.append((folder, reason))
            continue
        if recursive:
            names = (e.name for e in reversed(entries) if e.is_dir() and e.name[0] != ".")
            waiting += (os.path.join(folder, name) for name in names)
        yield folder, entries


def _read_stdin(result: Sources) -> None:
    """Add the image, or the files of the list, on standard input. A list holds no NUL."""
    where = "standard input"
    if sys.stdin is None:
        result.failed.append((STDIN, f"{where}: is closed"))
        return
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        result.failed.append((STDIN, f"{where}: has more than {format_bytes(_MOST_BYTES)}"))
    elif b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        result.stdin = data
        result.files[STDIN] = ""
    else:
        _add_listed(result, where, data, folder="")


def _read_list(result: Sources, path: str) -> None:
    """Add the files of a list. Relative names refer to the list's folder."""
    try:
        data = read_regular(path, _MOST_BYTES)
    except OSError as error:
        hint = "" if os.path.exists(path) else f" ({LIST}{path} names a list of images)"
        result.failed.append((LIST + path, f"{path}: {error.strerror}{hint}"))
        return
    _add_listed(result, path, data, os.path.dirname(path))


def _add_listed(result: Sources, where: str, data: bytes, folder: str) -> None:
    """Add the files that a list names, one per line; blank lines are passed over."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            data = data.decode("utf-16").encode()
    except UnicodeDecodeError as error:
        result.failed.append((where, f"{where}: is damaged UTF-16 text ({error.reason})"))
        return
    if b"\0" in data:
        kind = kind_of_bytes(data[:4096]) or "binary data"
        reason = f"{where}: is {kind}, expected a list of image files, one per line"
        result.failed.append((where, reason))
        return
    named = repeated = faults = 0
    for number, line in enumerate(io.BytesIO(data.removeprefix(codecs.BOM_UTF8)), 1):
        if name := os.fsdecode(line.strip()):
            named += 1
            file = str(Path(folder, name))
            if not (fault := _fault(file)):
                repeated += not result.add(file)
                continue
            place = f"{where}:{number}"
            faults += 1
            if faults > _MOST_FAULTS:
                raise ValueError(
                    f"detect: {place}: the {faults:,}th line without a file; expected a list of "
                    "image files, one per line"
                )
            result.failed.append((place, f"{place}: {shorten(file, _SHOWN)}: {fault}"))
    if repeated:
        note = f"{plural(repeated, 'name')} of files that were named before"
        result.left_out.append(f"{where}: left out {note}")
    if not named:
        result.failed.append((where, f"{where}: names no file"))


def _fault(file: str) -> str:
    """Return why a path names no image, without opening it; "" if it may."""
    try:
        folder = stat.S_ISDIR(os.stat(file).st_mode)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return str(error.strerror)
    return "is a folder, expected an image" if folder else ""
