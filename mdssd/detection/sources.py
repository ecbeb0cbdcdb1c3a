"""The files that `detect` reads, and the names of those that it writes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.detection.tables import is_table, table_path
from mdssd.names import TABLES
from mdssd.system.files import open_regular
from mdssd.system.text import plural

# The suffixes, in lower case, of images and videos that cannot be read.
_UNREADABLE = frozenset(
    ".heic .heif .hif .jxl .jxr .psd .svg .eps .exr .hdr .tga .ico .dcm .fits .raw .dng .cr2 .cr3 "
    ".nef .arw .raf .orf .rw2 .pef .srw .mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp "
    ".mts .m2ts .ts .insv .ogv".split()
)
# The longest name of a file, in bytes, on the usual file systems.
_LONGEST_NAME = 255
# A comment in the pictures that `detect` writes, by which it recognises them.
MARK = b"\xff\xfe\x00\x17drawn by mdssd detect"


@dataclass
class Sources:
    """What the sources of `detect` name.

    Attributes:
        files: the image files, each once.
        failed: (source, reason) for each source that names no image.
        left_out: a line per folder that holds more than images.
    """

    files: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_images(sources: Sequence[str | os.PathLike[str]]) -> Sources:
    """Find the image files that paths, folders and glob patterns name."""
    result = Sources()
    files: dict[str, Path] = {}
    for path in map(Path, sources):
        source = str(path)
        if path.is_dir():
            found, note = _in_folder(path)
            result.left_out += [f"{source}: left out {note}"] if note else []
            reason = f"{source}: the folder has no image ({', '.join(IMAGE_SUFFIXES)})"
            reason += f"; it has {note}" if note else ""
        elif path.exists() or not glob.has_magic(source):
            found, reason = [path], f"{source}: no such file or folder"
            if not path.exists():
                found = []
        else:
            matches = map(Path, sorted(glob.glob(source, recursive=True)))
            found, reason = [p for p in matches if p.is_file()], f"{source}: matches no file"
        if not found:
            result.failed.append((source, reason))
        for file in found:
            files.setdefault(os.path.realpath(file), file)
    result.files = list(files.values())
    return result


def _in_folder(folder: Path) -> tuple[list[Path], str]:
    """Return the images directly in a folder, and in words what else is there, if anything."""
    images, unreadable, hidden, folders, others = [], [], 0, 0, 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            hidden += 1
        elif path.is_dir():
            folders += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif path.suffix.lower() in _UNREADABLE:
            unreadable.append(path.name)
        else:
            others += 1
    notes = []
    if unreadable:
        names = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        kind = "image or video" if len(unreadable) == 1 else "images or videos"
        notes.append(f"{len(unreadable)} {kind} of a format that cannot be read ({names})")
    if folders:
        pattern = folder / "**" / "*.jpg"
        notes.append(f"{plural(folders, 'sub-folder')} (a pattern such as '{pattern}' reads them)")
    notes += [plural(hidden, "hidden file")] if hidden else []
    notes += [plural(others, "other file")] if others else []
    return images, ", ".join(notes)


def check_out(
    out: Path, files: Sequence[Path], names: Iterable[str], formats: Sequence[str], overwrite: bool
) -> str:
    """Check that writing into a folder replaces nothing but earlier results of `detect`.

    Args:
        out: the folder.
        files: the images that will be read.
        names: the names of the pictures that will be written.
        formats: the tables that will be written.
        overwrite: whether other files of these names may be replaced too, except images that are
            read.

    Returns:
        A line that says what will be replaced, or "".

    Raises:
        ValueError: the folder is a file, holds an image that is read, or holds a file that would
            be replaced and that `detect` has not written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"detect: out_dir: expected a folder, {out} is a file")
    taken = os.path.realpath(out)
    for file in files:
        if taken in (os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))):
            raise ValueError(
                f"detect: out_dir: {out} holds the image {file.name}, which a picture could "
                "replace; choose another folder"
            )
    pictures = [path for name in names if os.path.lexists(path := out / name)]
    tables = {form: table_path(out, form) for form in TABLES}
    tables = {form: path for form, path in tables.items() if os.path.lexists(path)}
    foreign = [path for path in pictures if not _is_picture(path)]
    foreign += [
        path for form, path in tables.items() if form in formats and not is_table(path, form)
    ]
    if foreign and not overwrite:
        raise ValueError(
            f"detect: out_dir: {foreign[0]} exists and is not a result of `mdssd detect`; choose "
            "another folder, or replace it by --overwrite (overwrite=True)"
        )
    replaced = [plural(len(pictures), "picture")] if pictures else []
    replaced += [path.name for form, path in tables.items() if form in formats]
    lines = [f"{out}: replacing {', '.join(replaced)} of an earlier run"] if replaced else []
    kept = [path for form, path in tables.items() if form not in formats and is_table(path, form)]
    lines += [f"{path} of an earlier run stays as it is" for path in kept]
    return "\n".join(lines)


def _is_picture(path: Path) -> bool:
    """Return whether a file is a picture that `detect` has written."""
    try:
        with open_regular(path) as file:
            return MARK in file.read(256)
    except OSError:
        return False


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """Return a unique name for the picture of each file; equal stems get a number."""
    names: dict[Path, str] = {}
    used: set[str] = set()
    for file in files:
        name, number = _file_name(file.stem, ".jpg"), 1
        while name.lower() in used:
            number += 1
            name = _file_name(file.stem, f"-{number}.jpg")
        used.add(name.lower())
        names[file] = name
    return names


def _file_name(stem: str, end: str) -> str:
    """Join a name, whose stem is shortened if a file system would refuse it."""
    while len(os.fsencode(stem + end)) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + end
