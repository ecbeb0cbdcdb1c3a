"""The files of a Hugging Face data set: Arrow files of `save_to_disk`, and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from mdssd.data.arrow_files import (
    as_rows,
    check_images,
    is_parquet,
    read_arrow,
    read_batches,
    read_row_group,
    read_schema,
    row_group_starts,
)
from mdssd.data.file_index import FileIndex, inner_name, is_hidden
from mdssd.data.images import IMAGE_SUFFIXES, ImageLimits, read_bytes
from mdssd.data.sample import DataError
from mdssd.data.splits import split_in_name
from mdssd.data.values import decode_text, shown
from mdssd.system.files import read_regular

_MAX_JSON = 64 << 20
_HELD = 256 << 20  # bytes of the row group that is held while the next is read
_ENDINGS = (".parquet", ".arrow")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        file: the file.
        number: from 0.
        values: without the image's bytes.
        fault: why it cannot be used; "" if it can.
    """

    file: Path
    number: int
    values: dict[str, Any]
    fault: str = ""


def table_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split; the only split is "" if there are none.

    Raises:
        DataError: a description of the files is broken, or names a file that is outside.
    """
    if path.is_file():
        return {split_in_name(path.stem) or "": [path]} if path.suffix.lower() in _ENDINGS else {}
    if (path / "dataset_dict.json").is_file():
        names = _read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path / 'dataset_dict.json'}: has no list 'splits'")
        where = str(path / "dataset_dict.json")
        return {split_in_name(name) or name: _saved(_inside(path, name, where)) for name in names}
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        split = _read_json(path / "state.json").get("_split")
        split = (split_in_name(split) or split) if isinstance(split, str) else ""
        return {split: _saved(path)}
    splits: dict[str, list[Path]] = {}
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet"):
        for file in sorted(path.glob(pattern)):
            if not is_hidden(file.name):
                # "train-00000-of-00001.parquet", or "train/0000.parquet".
                split = split_in_name(file.stem.split("-")[0])
                if split is None and file.parent != path:
                    split = split_in_name(file.parent.name)
                splits.setdefault(split or "", []).append(file)
        if splits:
            break
    return splits


def read_features(path: Path) -> dict[str, Any]:
    """Return what the library `datasets` writes about the columns; {} if there is nothing.

    Args:
        path: an Arrow or Parquet file.
    """
    schema = read_schema(path)
    content: Any = None
    data = (schema.metadata or {}).get(b"huggingface")
    try:
        content = json.loads(data) if data else None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: its description of the columns is broken JSON") from None
    info = path.parent / "dataset_info.json"
    if content is None and info.is_file():
        content = {"info": _read_json(info)}
    for key in ("info", "features"):
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def read_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Yield the rows of a file with some of its columns, a few of them in memory at a time.

    Raises:
        DataError: the file is damaged.
    """
    number = 0
    for batch in read_batches(path, columns):
        for values in as_rows(path, batch):
            if isinstance(values, str):
                yield Row(path, number, {}, values)
            else:
                yield Row(path, number, values)
            number += 1


class ImageReader:
    """Reads the images of single rows, and keeps the last parts of Parquet files.

    It can be pickled, and each process opens the files itself.

    Args:
        column: the column of the images.
        root: the folder of the data set, in which images lie whose path is stated.
    """

    def __init__(self, column: str, root: Path) -> None:
        self.column = column
        self.root = root
        self._open()

    def _open(self) -> None:
        self._parts: dict[tuple[Path, int], Any] = {}
        self._faults: dict[tuple[Path, int], str] = {}
        self._starts: dict[Path, list[int]] = {}
        self._index: FileIndex | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"column": self.column, "root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, path: Path, limits: ImageLimits | None = None) -> bytes:
        """Return the bytes of the image in a row, or of the file that it names.

        Args:
            path: the table's file, with the number of the row as the last part.
            limits: what a file may hold.

        Raises:
            DataError: there is none.
        """
        value = self._value(path.parent, int(path.name))
        if isinstance(value, dict):
            data, name = value.get("bytes"), value.get("path")
        else:
            data, name = value, None
        if isinstance(data, bytes):
            return data
        if not isinstance(name, str):
            raise DataError(f"{row_text(path)}: image is {shown(value)}, expected an image")
        if self._index is None:
            self._index = FileIndex(self.root, IMAGE_SUFFIXES)
        found = None if ".." in name.replace("\\", "/").split("/") else self._index.find(name)
        if found is None:
            raise DataError(
                f"{row_text(path)}: no image {shown(name)} in {self.root}, and the table has only "
                "its path; put the images into this folder, or save the data set with "
                "save_to_disk(), which stores them"
            )
        return read_bytes(found, limits or ImageLimits())

    def _value(self, path: Path, number: int) -> Any:
        if is_parquet(path):
            if path not in self._starts:
                self._starts[path] = row_group_starts(path)
            starts = self._starts[path]
            group = max(k for k, start in enumerate(starts) if start <= number)
            part, number = self._part(path, group), number - starts[group]
        else:
            part = self._part(path, -1)
        return part.slice(number, 1).to_pylist()[0][self.column]

    def _part(self, path: Path, group: int) -> Any:
        """Return the images of a row group, or of a whole Arrow file, whose data stay there."""
        key = (path, group)
        if key in self._faults:  # found again for every row, it would take its time every time
            raise DataError(self._faults[key])
        part = self._parts.pop(key, None)
        try:
            part = self._read_part(path, group) if part is None else part
        except DataError as error:
            self._faults[key] = str(error)
            raise
        self._parts[key] = part  # now the last one
        return part

    def _read_part(self, path: Path, group: int) -> Any:
        check_images(path, self.column)
        if group < 0:
            return read_arrow(path, [self.column])
        # Of the row groups, the last one stays if it is not too large.
        held = [each for each in self._parts if each[1] >= 0]
        for old in held:
            if old != held[-1] or self._parts[old].nbytes > _HELD:
                del self._parts[old]
        return read_row_group(path, group, self.column)


def row_text(path: Path) -> str:
    """Return the path of a row, as `ImageReader.read` takes it, for messages."""
    return f"{path.parent}: row {path.name}"


def _saved(folder: Path) -> list[Path]:
    """Return the files of a data set that `save_to_disk` wrote into a folder."""
    state = folder / "state.json"
    content = _read_json(state)
    if content.get("_indices_data_files"):
        raise DataError(f"{state}: has a file of indices; save it again with flatten_indices()")
    entries = content.get("_data_files")
    files = []
    for entry in entries if isinstance(entries, list) else ():
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise DataError(f"{state}: _data_files has {shown(entry)}, expected a filename")
        files.append(_inside(folder, name, str(state)))
    if not files:
        raise DataError(f"{state}: names no file (_data_files)")
    return files


def _inside(folder: Path, name: str, where: str) -> Path:
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise DataError(
            f"{where}: {shown(name)} is an absolute path, expected a name inside {folder}"
        )
    return folder / inner_name(name, folder, where)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(decode_text(read_regular(path, _MAX_JSON)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: is {shown(content)}, expected an object")
    return content
