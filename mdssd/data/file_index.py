"""The files of a folder, found by the names that annotations give them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from mdssd.data.sample import DataError
from mdssd.data.values import shown


def inner_name(name: str, folder: Path, where: str) -> str:
    """Return a relative name with forward slashes and without "." and "..".

    Args:
        name: the name in an annotation or a list, with slashes or backslashes.
        folder: the folder it refers to, for messages.
        where: the file that holds the name, for messages.

    Raises:
        DataError: the name is none, or leads out of the folder.

    Example:
        >>> from pathlib import Path
        >>> from mdssd.data.file_index import inner_name
        >>> inner_name("./day1\\\\a.jpg", Path("images"), "list.txt")
        'day1/a.jpg'
    """
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(f"{where}: {shown(name)} is not a file name")
    result = os.path.normpath(name.replace("\\", "/"))
    if result == ".." or result.startswith("../"):
        raise DataError(
            f"{where}: {shown(name)} leaves the folder {folder}; expected a name inside it"
        )
    return result


class FileIndex:
    """All files in a folder and its sub-folders, except hidden ones. Links are followed.

    A name is found as it is; else in another Unicode form, as macOS writes accents, or in another
    case, as Windows allows, if only one file matches. An absolute path, and one that begins with
    the folder's own name, is found by its last parts.

    Args:
        folder: the folder.
        suffixes: the endings, in lower case, of the files to hold, those to prefer first.
        prefixes: folders that names may begin with, as they may with the folder's own name.

    Raises:
        DataError: a folder cannot be read.

    Attributes:
        folder: the folder.
        all_names: the path of each file in the folder.
        names: for each path without the ending, the file with the preferred ending.
        others: for each path without the ending, the files with other endings, if there are any.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mdssd.data.file_index import FileIndex
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "a.JPG").touch()
        ...     index = FileIndex(Path(folder), (".png", ".jpg"))
        >>> index.find("/photos/a.jpg").name, index.find_stem("a").name, index.find("b.jpg")
        ('a.JPG', 'a.JPG', None)
    """

    def __init__(self, folder: Path, suffixes: Sequence[str], prefixes: Sequence[str] = ()) -> None:
        self.folder = folder
        self._prefixes = {folder.name, folder.resolve().name, *prefixes}
        self.names: dict[str, str] = {}
        self.others: dict[str, list[str]] = {}
        self.all_names: list[str] = []
        self._files: dict[str, str] = {}
        self._loose: dict[str, str] = {}
        rank = {suffix: k for k, suffix in enumerate(suffixes)}
        found = []
        for name in _walk(folder):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in rank:
                found.append((rank[suffix.lower()], stem, name))
        # In the order of preference: the first file of a stem is the one that counts.
        for _, stem, name in sorted(found):
            self.all_names.append(name)
            _add(self._files, self._loose, name, name)
            if stem not in self.names:
                self.names[stem] = name
            else:
                self.others.setdefault(stem, []).append(name)
        self._stems: dict[str, str] = {}
        self._loose_stems: dict[str, str] = {}
        for stem, name in self.names.items():
            _add(self._stems, self._loose_stems, stem, name)

    def find(self, name: str) -> Path | None:
        """Return the file with this name; None if there is none."""
        return self._find(name, self._files, self._loose)

    def find_stem(self, name: str) -> Path | None:
        """Return the file with this name, which has no ending; None if there is none."""
        return self._find(name, self._stems, self._loose_stems)

    def only(self, file: Path, where: str) -> Path:
        """Return a file that was found by its name without the ending.

        Args:
            file: the file.
            where: the annotation that does not say which file it is about, for messages.

        Raises:
            DataError: there are others of this name, with other endings.
        """
        stem = file.relative_to(self.folder).with_suffix("").as_posix()
        if others := self.others.get(stem):
            raise DataError(
                f"{where}: {file} and {self.folder / others[0]} have the same name without the "
                "ending, and the annotation names neither; expected one image of each name"
            )
        return file

    def _find(self, name: str, files: dict[str, str], loose: dict[str, str]) -> Path | None:
        for form in self._forms(name.replace("\\", "/")):
            usual = unicodedata.normalize("NFC", os.path.normpath(form))
            found = files.get(usual) or loose.get(usual.casefold())
            if found:
                return self.folder / found
        return None

    def _forms(self, name: str) -> Iterator[str]:
        """Yield the name, and the ends of it that may be meant."""
        absolute = name.startswith("/") or bool(PureWindowsPath(name).drive)
        if not absolute:
            yield name
        parts = PurePosixPath(name).parts
        for k in range(1, len(parts)):
            if absolute or parts[k - 1] in self._prefixes:
                yield "/".join(parts[k:])


def _add(exact: dict[str, str], loose: dict[str, str], name: str, file: str) -> None:
    """Enter a file. Two names of the same loose form leave that form without a file."""
    usual = unicodedata.normalize("NFC", name)
    exact.setdefault(usual, file)
    folded = usual.casefold()
    loose[folded] = "" if folded in loose else file


def _walk(folder: Path) -> Iterator[str]:
    """Yield the path of each file relative to the folder. A folder that links in a circle ends."""
    seen = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        inner = os.path.relpath(place, folder)
        for name in files:
            if not is_hidden(name):
                yield name if inner == "." else f"{inner}/{name}"


def _refuse(error: OSError) -> None:
    """Raise the error of a folder, unless there is no such folder: its files would be missed."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror})")


def is_hidden(name: str) -> bool:
    """Return whether a file is none of the user's: hidden, or left by macOS in an archive."""
    return name.startswith(".") or name == "__MACOSX"
