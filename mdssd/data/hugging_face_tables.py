"""The files of a Hugging Face data set: Arrow files of `save_to_disk`, and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mdssd.data.file_index import FileIndex, inner_name, is_hidden
from mdssd.data.images import IMAGE_SUFFIXES, ImageLimits, read_bytes
from mdssd.data.sample import DataError
from mdssd.data.splits import split_in_name
from mdssd.data.values import decode_text, shown
from mdssd.system.files import format_bytes, open_regular, read_regular

_MAX_JSON = 64 << 20
_MAX_PART = 4 << 30  # bytes of a row group or batch
_PARTS = 2  # row groups whose images are held
_MAGIC = (b"PAR1", b"ARRO")


class Row(NamedTuple):
    """A row of a table: its file, its number from 0, and its values without the image's bytes."""

    file: Path
    number: int
    values: dict[str, Any]


def table_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split; the only split is "" if there are none.

    Raises:
        DataError: a description of the files is broken, or names a file that is outside.
    """
    if path.is_file():
        return {split_in_name(path.stem) or "": [path]} if _is_table(path) else {}
    if (path / "dataset_dict.json").is_file():
        names = _read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path / 'dataset_dict.json'}: has no list 'splits'")
        where = str(path / "dataset_dict.json")
        return {
            split_in_name(name) or name: _saved(path / inner_name(name, path, where))
            for name in names
        }
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        split = _read_json(path / "state.json").get("_split")
        split = (split_in_name(split) or split) if isinstance(split, str) else ""
        return {split: _saved(path)}
    splits: dict[str, list[Path]] = {}
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet"):
        for file in sorted(path.glob(pattern)):
            if not is_hidden(file.name) and _is_table(file):
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
    schema = _schema(path)
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


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a file."""
    return list(_schema(path).names)


def read_rows(path: Path, columns: list[str], batch: int = 64) -> Iterator[Row]:
    """Yield the rows of a file with some of its columns, a few of them in memory at a time.

    Raises:
        DataError: the file is damaged.
    """
    number = 0
    for part in _batches(path, columns, batch):
        for start in range(0, len(part), batch):
            for values in _listed(path, part.slice(start, batch)):
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
            raise DataError(f"{row_text(path)}: has no image, it is {shown(value)}")
        if self._index is None:
            self._index = FileIndex(self.root, IMAGE_SUFFIXES)
        found = None if ".." in name.replace("\\", "/").split("/") else self._index.find(name)
        if found is None:
            raise DataError(f"{row_text(path)}: no image {shown(name)} in {self.root}")
        return read_bytes(found, limits or ImageLimits())

    def _value(self, path: Path, number: int) -> Any:
        if not _is_parquet(path):
            table = self._part(path, -1)
            return _listed(path, table.slice(number, 1))[0][self.column]
        starts = self._row_groups(path)
        group = max(k for k, start in enumerate(starts) if start <= number)
        part = self._part(path, group)
        return _listed(path, part.slice(number - starts[group], 1))[0][self.column]

    def _row_groups(self, path: Path) -> list[int]:
        if path not in self._starts:
            meta = _parquet(path).metadata
            starts = [0]
            for k in range(meta.num_row_groups):
                starts.append(starts[-1] + meta.row_group(k).num_rows)
            self._starts[path] = starts[:-1]
        return self._starts[path]

    def _part(self, path: Path, group: int) -> Any:
        key = (path, group)
        part = self._parts.pop(key, None)
        if part is None:
            if group < 0:
                part = _arrow(path).select([self.column])
            else:
                part = _row_group(path, group, [self.column])
        self._parts[key] = part  # now the last one
        mapped = [each for each in self._parts if each[1] >= 0]
        for old in mapped[:-_PARTS]:
            del self._parts[old]
        return part


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
        files.append(folder / inner_name(name, folder, str(state)))
    if not files:
        raise DataError(f"{state}: names no file (_data_files)")
    return files


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


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_table(path: Path) -> bool:
    if path.suffix.lower() not in (".parquet", ".arrow"):
        return False
    try:
        with open_regular(path) as file:
            return file.read(4) in _MAGIC or not _is_parquet(path)
    except OSError:
        return False


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "a Hugging Face data set needs the package pyarrow: pip install 'mdssd[parquet]'"
        ) from None
    return pyarrow


def _failed(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path}: cannot be read, is it complete? ({reason})")


def _schema(path: Path) -> Any:
    return _parquet(path).schema_arrow if _is_parquet(path) else _arrow(path).schema


def _parquet(path: Path) -> Any:
    arrow = _pyarrow()
    try:
        open_regular(path).close()
        return arrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (OSError, arrow.ArrowException) as error:
        raise _failed(path, error) from None


def _arrow(path: Path) -> Any:
    """Return a table whose data stay in the file."""
    arrow = _pyarrow()
    try:
        open_regular(path).close()
        try:
            return arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()
        except arrow.ArrowInvalid:
            return arrow.ipc.open_file(arrow.memory_map(str(path))).read_all()
    except (OSError, arrow.ArrowException) as error:
        raise _failed(path, error) from None


def _row_group(path: Path, group: int, columns: list[str]) -> Any:
    arrow = _pyarrow()
    file = _parquet(path)
    size = file.metadata.row_group(group).total_byte_size
    if size > _MAX_PART:
        raise DataError(
            f"{path}: row group {group} has {format_bytes(size)}, expected at most "
            f"{format_bytes(_MAX_PART)}"
        )
    try:
        return file.read_row_group(group, columns, use_threads=False)
    except (OSError, arrow.ArrowException) as error:
        raise _failed(path, error) from None


def _batches(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    if not _is_parquet(path):
        yield _arrow(path).select(columns)
        return
    for group in range(_parquet(path).metadata.num_row_groups):
        yield _row_group(path, group, columns)


def _listed(path: Path, table: Any) -> list[dict[str, Any]]:
    """Return the rows of a table as Python's values."""
    arrow = _pyarrow()
    try:
        table.validate()
        return table.to_pylist()
    except (ValueError, OverflowError, arrow.ArrowException) as error:
        raise _failed(path, error) from None
