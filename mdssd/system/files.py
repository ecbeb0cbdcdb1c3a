"""Writing files so that a crash never leaves half of one."""

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
    """Open a file that takes the place of `path` only when the block ends without an error.

    The bytes go to a temporary file in the same folder (`.<name>.<process>.tmp`), which is
    flushed to the disk and then renamed over `path`; the folder is flushed as well. Whoever
    reads `path` sees the old file or the new one, also after a crash or a power cut. On an
    error in the block the temporary file is removed and `path` stays as it was.

    Args:
        path: the file to write; its folder must exist.
        mode: "w" (text, UTF-8) or "wb" (bytes).

    Raises:
        ValueError: for another mode.
        OSError: where the folder is missing or cannot be written.
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
    """Remove what killed processes left of their `atomic_write(path)`; no other may be running."""
    path = Path(path)
    for file in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        file.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk, so that a rename in it outlives a power cut.

    Does nothing where the system cannot open a folder (Windows).
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
