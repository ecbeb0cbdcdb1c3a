"""Read regular files only, and write files so that a crash never leaves a partial one."""

from __future__ import annotations

import errno
import glob
import hashlib
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ImportError:  # on Windows: `remove_all_leftovers` then removes nothing
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".mdssd.tmp"
_TEMPORARY = re.compile(rf"\..+\.\d+{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
# `AtomicFiles` flushes so many files together, or those of so many seconds, by so many threads: the
# file system of Linux joins flushes that arrive at once.
_GROUP, _GROUP_SECONDS, _GROUP_THREADS = 64, 1.0, 8
# A name of a temporary file has at most about this many bytes. File systems allow 255, some 143.
_LONG_NAME = 100

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Every file that a user names is opened by this.

    Reading from a pipe or a device might wait or go on for ever, so they are refused. Symbolic
    links are followed.

    Args:
        path: the file.

    Returns:
        The file, open for reading bytes.

    Raises:
        OSError: the path is missing, cannot be read, or is not a regular file. Its `strerror`
            says what it is, its `filename` is the path.

    Example:
        >>> import tempfile
        >>> from mdssd.system.files import open_regular
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_regular(folder)
        Traceback (most recent call last):
            ...
        IsADirectoryError: [Errno 21] is a folder, expected a regular file: '...'
    """
    try:
        check_regular(os.stat(path), path)  # before it is opened, which a device may notice
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), path) from None
    try:
        check_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise an OSError that says what it is if an opened file is not a regular one."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        code = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        what = _KINDS.get(kind, "a special file")
        raise OSError(code, f"is {what}, expected a regular file", path)


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Return the bytes of a regular file, of which there may be at most `limit`.

    Args:
        path: the file; see `open_regular`.
        limit: the most bytes; None for any number.

    Returns:
        The bytes.

    Raises:
        OSError: as `open_regular` says, or the file is longer than the limit, which is found
            without reading it.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from mdssd.system.files import read_regular
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a"
        ...     _ = path.write_bytes(b"whole")
        ...     read_regular(path, limit=100)
        b'whole'
    """
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= limit else b""  # not more: memory is reserved for it
        if (
            size < len(data) <= limit
        ):  # a file that grows, or one of /proc, which states a size of 0
            data += file.read(limit + 1 - len(data))
        if max(size, len(data)) > limit:
            got, most = format_bytes(max(size, len(data))), format_bytes(limit)
            raise OSError(errno.EFBIG, f"has {got}, expected at most {most}", path)
        return data


def format_bytes(count: int) -> str:
    """Return a number of bytes for people: 3,100,000,000 is "3.1 GB".

    Example:
        >>> from mdssd.system.files import format_bytes
        >>> format_bytes(64), format_bytes(3_100_000_000)
        ('64 bytes', '3.1 GB')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only when the block ends without an error.

    The data goes to a temporary file in the same folder (`.<name>.<process>.mdssd.tmp`, with a
    digest in place of a long name), which is flushed to the disk and then renamed to `path`; the
    folder is flushed as well. A reader of `path` sees the old file or the new one, even after a
    crash or a power cut. On an error in the block the temporary file is removed and `path` stays
    as it was.

    Args:
        path: the file to write. Its folder must exist.
        mode: "w" (text in UTF-8 with "\\n" line ends) or "wb" (bytes).

    Yields:
        The open temporary file.

    Raises:
        ValueError: the mode is neither "w" nor "wb".
        OSError: the folder is missing or cannot be written, or the disk is full. An error that
            names no file, as that of a full disk, is given `path` as its filename.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from mdssd.system.files import atomic_write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.txt"
        ...     with atomic_write(path) as file:
        ...         _ = file.write("whole")
        ...     path.read_text()
        'whole'
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write: mode: expected 'w' or 'wb', got {mode!r}")
    path = Path(path)
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "\n")
    with _temporary(path) as temporary:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            lock_file(file)  # until it is closed
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the name of the temporary file of a path. On an error in the block it is removed."""
    temporary = path.with_name(f"{_stem(path)}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        if error.filename == os.fspath(temporary):  # a name that the user never gave
            error.filename, error.filename2 = os.fspath(path), None
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = os.fspath(path)
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class AtomicFiles:
    """Writes many small files, each as safely as `atomic_write`, and flushes them together.

    Flushing a file to the disk takes 10 ms or so, and flushing many at once hardly longer. So the
    files appear in groups: when there are 64, when a second has passed since the last group, and
    by `flush`, which must be called at last.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from mdssd.system.files import AtomicFiles
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = AtomicFiles()
        ...     for number in range(3):
        ...         files.write(Path(folder) / f"{number}.txt", b"whole")
        ...     files.flush()
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['0.txt', '1.txt', '2.txt']
    """

    def __init__(self) -> None:
        self._pending: dict[Path, tuple[Path, BinaryIO]] = {}
        self._flushed = -math.inf  # when, by time.monotonic()

    def write(self, path: Path, data: bytes) -> None:
        """Write a file, whose folder must exist.

        Raises:
            OSError: it cannot be written, or an earlier one cannot be flushed.
        """
        if path in self._pending:
            self.flush()
        with _temporary(path) as temporary, ExitStack() as stack:
            file = stack.enter_context(open(temporary, "wb"))
            lock_file(file)
            file.write(data)
            file.flush()
            stack.pop_all()
        self._pending[path] = temporary, file
        late = time.monotonic() - self._flushed >= _GROUP_SECONDS
        if late or len(self._pending) >= _GROUP:
            self.flush()

    def remove(self, path: Path) -> None:
        """Remove a file that was written."""
        if path in self._pending:
            temporary, file = self._pending.pop(path)
            file.close()
            temporary.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Make all files appear that were written. If one cannot, those that do are whole.

        Raises:
            OSError: a file cannot be flushed or renamed.
        """
        pending, self._pending = self._pending, {}
        with ExitStack() as stack:
            for path, (_, file) in pending.items():
                stack.enter_context(_temporary(path))
                stack.enter_context(file)
            with ThreadPoolExecutor(_GROUP_THREADS) as pool:
                list(pool.map(_sync, pending, [file for _, file in pending.values()]))
            for path, (temporary, file) in pending.items():
                file.close()
                os.replace(temporary, path)
        for folder in {path.parent for path in pending}:
            sync_folder(folder)
        self._flushed = time.monotonic()


def _sync(path: Path, file: BinaryIO) -> None:
    """Flush an open file to the disk, which is to become that of a path."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Create a folder if it is missing, and check that a file can be written in it.

    A command calls this before its long part, whose result it could not keep otherwise.

    Raises:
        OSError: a file has this name, or the folder cannot be created or written; `filename` is
            the folder.

    Example:
        >>> import tempfile
        >>> from mdssd.system.files import writable_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writable_folder(f"{folder}/a/b").is_dir()
        True
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return path


def _stem(path: Path) -> str:
    """Return the beginning of the name of a temporary file of `atomic_write(path)`."""
    name = os.fsencode(path.name)
    if len(name) <= _LONG_NAME:
        return f".{path.name}"
    return f".{hashlib.sha256(name).hexdigest()[:32]}"


def lock_file(file: IO[Any]) -> bool:
    """Lock a file until it is closed. Return False if another process has, or if it cannot be.

    Example:
        >>> import tempfile
        >>> from mdssd.system.files import lock_file
        >>> with tempfile.TemporaryFile() as file:
        ...     lock_file(file)
        True
    """
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of killed `atomic_write(path)` calls.

    No `atomic_write(path)` may be in progress.
    """
    path = Path(path)
    for file in path.parent.glob(f"{glob.escape(_stem(path))}.*{TEMPORARY_SUFFIX}"):
        file.unlink(missing_ok=True)


def remove_all_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed `atomic_write` calls have left in a folder.

    A file that is being written, by this process or another, is locked and therefore stays.

    Args:
        folder: the folder. It may be missing.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from mdssd.system.files import remove_all_leftovers
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / ".a.jpg.4242.mdssd.tmp").touch()
        ...     remove_all_leftovers(folder)
        ...     list(Path(folder).iterdir())
        []
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in filter(_TEMPORARY.fullmatch, names):
        path = os.path.join(folder, name)
        with suppress(OSError), open_regular(path) as file:
            if lock_file(file):
                os.unlink(path)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut.

    Does nothing on systems that cannot open a folder (Windows).
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
