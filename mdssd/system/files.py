"""Write files so that a crash never leaves a partial one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only when the block ends without an error.

    The data goes to a temporary file in the same folder (`.<name>.<process>.tmp`), which is
    flushed to the disk and then renamed to `path`; the folder is flushed as well. A reader of
    `path` sees the old file or the new one, even after a crash or a power cut. On an error in the
    block the temporary file is removed and `path` stays as it was.

    Args:
        path: the file to write. Its folder must exist.
        mode: "w" (text in UTF-8 with "\\n" line ends) or "wb" (bytes).

    Yields:
        The open temporary file.

    Raises:
        ValueError: the mode is neither "w" nor "wb".
        OSError: the folder is missing or cannot be written.

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "\n")
    try:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of killed `atomic_write(path)` calls.

    No `atomic_write(path)` may be in progress.
    """
    path = Path(path)
    for file in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        file.unlink(missing_ok=True)


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
