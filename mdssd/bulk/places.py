"""Folders and files on the local disk, or at an address of pyarrow or fsspec such as s3://..."""

from __future__ import annotations

import fnmatch
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from mdssd.data import DataError
from mdssd.data.images import ImageLimits
from mdssd.system.files import atomic_write, format_bytes, open_regular, read_regular

_MARK = "://"
_MAGIC = "*?["
# Settings that pyarrow takes behind an address of these storages.
_SETTING = re.compile(r"^(?:s3|gs|gcs)://.*?[?&](endpoint_override|scheme|region|anonymous)=")
# At an address so many bytes are read at a time, unless more are needed.
_BUFFER = 1 << 20
# How pyarrow names the reason that S3 gives for an answer of 403.
_DENIED = "ACCESS_DENIED"


def is_address(name: str) -> bool:
    """Return whether a name is an address such as s3://bucket/a.jpg, and no path."""
    return _MARK in name


@lru_cache(maxsize=64)
def _file_system(root: str) -> tuple[Any, str]:
    """Return the file system of the addresses that begin with `root`, and the path of `root` in it.

    Args:
        root: a scheme and a host, such as s3://bucket/.
    """
    import pyarrow
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(root)
        return system, path.rstrip("/")
    except (ValueError, NotImplementedError, pyarrow.ArrowException):
        pass  # pyarrow does not know the scheme; fsspec may
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(root)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path.rstrip("/")
    except (ImportError, ValueError) as error:
        raise ValueError(f"detect: {root}: no file system for this address ({error})") from None


def _root_of(address: str) -> tuple[str, Any, str]:
    """Return how an address begins, the file system there, and the path of this beginning in it."""
    if setting := _SETTING.search(address):
        raise ValueError(
            f"detect: {address}: expected an address without {setting[1]}=; every node takes such "
            "settings from environment variables, as AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
        )
    scheme, _, rest = address.partition(_MARK)
    host = "" if scheme in ("file", "local") else rest.partition("/")[0]
    begin = f"{scheme}{_MARK}{host}"
    return begin, *_file_system(f"{begin}/")


def _at(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    begin, system, base = _root_of(address)
    return system, base + address[len(begin) :]


def _within(address: str, path: str) -> str:
    """Return the address of another path in the file system of an address."""
    begin, _, base = _root_of(address)
    return begin + path[len(base) :]


def open_parquet(name: str) -> Any:
    """Open a Parquet file by its path or address, as a `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: it is missing or damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        if not is_address(name):
            return parquet.ParquetFile(name)
        system, path = _at(name)
        return parquet.ParquetFile(system.open_input_file(path))
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except (ValueError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: is damaged, or no Parquet file ({reason})") from None


def _open(address: str) -> Any:
    """Open a file at an address as a `pyarrow.NativeFile`, in which one can seek.

    Raises:
        DataError: there is no such file, or it may not be read.
        OSError: the storage cannot be reached, or it accepts nothing from this user.
    """
    system, path = _at(address)
    try:
        return system.open_input_file(path)
    except FileNotFoundError:
        raise DataError(f"{address}: no such file") from None
    except OSError as error:
        if not isinstance(error, PermissionError):
            if _DENIED not in str(error):
                raise
            # S3 says the same of one file and of wrong credentials, which it refuses here too.
            system.get_file_info(path.partition("/")[0])
        raise DataError(f"{address}: cannot be read (permission denied)") from None


def open_file(address: str) -> BinaryIO:
    """Open a file at an address. Reading fetches only the parts that are needed; see `_open`."""
    return cast(BinaryIO, io.BufferedReader(_open(address), _BUFFER))


def open_source(name: str) -> BinaryIO:
    """Open a file by its path or its address.

    Raises:
        DataError: it is missing, or it may not be read.
        OSError: the storage of an address cannot be reached.
    """
    if is_address(name):
        return open_file(name)
    try:
        return open_regular(name)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from None


def read_bytes(address: str, limits: ImageLimits | None = None) -> bytes:
    """Return the content of a file at an address.

    Args:
        address: the address.
        limits: those of an image, which may have ten bytes for each pixel. None for any file.

    Raises:
        DataError: there is no such file, or it may not be read, or it has too many bytes.
        OSError: the storage cannot be reached.
    """
    with _open(address) as file:
        most = None if limits is None else 10 * limits.max_pixels
        if most is not None and file.size() > most:
            raise DataError(
                f"{address}: has {format_bytes(file.size())}, expected at most "
                f"{format_bytes(most)}; the limit is ten bytes for each pixel of --max-pixels"
            )
        return bytes(file.read())


def find_files(address: str, *, recursive: bool) -> tuple[list[str], bool]:
    """Return the files that an address names: a file, a folder's, or those that a pattern matches.

    Args:
        address: an address, whose last parts may be a pattern.
        recursive: whether the folders below a folder are searched too.

    Returns:
        The addresses, sorted, and whether the address names them one by one: False for a folder,
        whose files have to be chosen by their endings.
    """
    from pyarrow import fs

    system, path = _at(address)
    magic = min((path.index(sign) for sign in _MAGIC if sign in path), default=-1)
    if magic >= 0:
        top = path[:magic].rpartition("/")[0]
        deep = "/" in path[magic:]
        selector = fs.FileSelector(top, recursive=deep, allow_not_found=True)
        every = (one.path for one in system.get_file_info(selector) if one.is_file)
        found = (one for one in every if fnmatch.fnmatchcase(one, path))
        return sorted(_within(address, one) for one in found), True
    info = system.get_file_info(path)
    if info.is_file:
        return [address], True
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    files = (one.path for one in system.get_file_info(selector) if one.is_file)
    return sorted(_within(address, one) for one in files), False


@dataclass(frozen=True)
class Place:
    """A folder that a job writes to.

    Attributes:
        name: its path or its address.
    """

    name: str

    def create(self) -> None:
        """Create the folder if it is missing."""
        if is_address(self.name):
            system, path = _at(self.name)
            system.create_dir(path, recursive=True)
        else:
            Path(self.name).mkdir(parents=True, exist_ok=True)

    def names(self) -> Iterator[str]:
        """Yield the names of the files in the folder."""
        if not is_address(self.name):
            if os.path.isdir(self.name):
                with os.scandir(self.name) as entries:
                    yield from (entry.name for entry in entries)
            return
        from pyarrow import fs

        system, path = _at(self.name)
        for one in system.get_file_info(fs.FileSelector(path, allow_not_found=True)):
            yield one.base_name

    def read(self, name: str) -> bytes:
        """Return the content of a file in the folder."""
        path = f"{self.name.rstrip('/')}/{name}"
        return read_bytes(path) if is_address(path) else read_regular(path)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which appears whole or not at all, and replaces an earlier one."""
        path = f"{self.name.rstrip('/')}/{name}"
        if not is_address(path):
            with atomic_write(path, "wb") as file:
                file.write(data)
            return
        system, within = _at(path)
        with system.open_output_stream(within) as file:  # an object appears when it is closed
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove a folder in the folder, if there is one."""
        path = f"{self.name.rstrip('/')}/{name}"
        if not is_address(path):
            shutil.rmtree(path, ignore_errors=True)
            return
        system, within = _at(path)
        with suppress(FileNotFoundError):
            system.delete_dir(within)
