"""The losses of a training run as a CSV file."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mdssd.system.files import (
    atomic_write,
    check_regular,
    open_regular,
    read_regular,
    remove_leftovers,
)
from mdssd.system.text import printable

try:
    import fcntl
except ImportError:  # on Windows: a second run in the same folder goes unnoticed
    fcntl = None  # type: ignore[assignment]

COLUMNS = ("step", "epoch", "lr", "loc", "conf", "total", "images_per_s", "waiting")

_MOST_BYTES = 2**30

# Loader workers are forked and inherit the lock. If the parent is killed, they live on for seconds,
# and a lock of theirs would block a resume.
_locks: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in _locks:
        lock.close()  # the parent keeps its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


class LossLog:
    """Appends rows to a CSV file and flushes each. The file itself is locked while it is open.

    Steps and epochs count from 1. The losses are means over the iterations since the previous row.
    "waiting" is the fraction of the time (0 to 1) that was spent waiting for images. A full disk
    costs one warning; the rows are written when there is room again.

    Args:
        path: the file. A new run (`last_step` of 0) overwrites it.
        last_step: the iteration of the checkpoint that the run resumes from. Later rows are
            removed, because these iterations are repeated.

    Raises:
        RuntimeError: another process is writing the file.
        ValueError: the file to continue is not such a CSV.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from mdssd.training.loss_log import LossLog
        >>> row = dict(epoch=1, lr=0.1, loc=1.0, conf=2.0, total=3.0, images_per_s=9.0, waiting=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with LossLog(Path(folder, "loss.csv")) as log:
        ...         log.write(step=1, **row)
        ...     print(log.path.read_text(), end="")
        step,epoch,lr,loc,conf,total,images_per_s,waiting
        1,1,0.1,1,2,3,9,0.5
    """

    def __init__(self, path: str | os.PathLike[str], last_step: int = 0) -> None:
        self.path = Path(path)
        self._lock = self._take_lock()
        try:
            remove_leftovers(self.path)
            rows = _rows_up_to(self.path, last_step)
            with atomic_write(self.path) as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
            # The path names a new file now. Whoever still opens the old one sees that in
            # _take_lock, so the old lock is held until the new one is.
            before, self._lock = self._lock, self._take_lock()
            before.close()
            self._file: IO[str] = open(self.path, "a", encoding="utf-8", newline="")
        except BaseException:
            self._lock.close()
            raise
        self._warned = False
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _take_lock(self) -> IO[str]:
        # Not blocking, so that a named pipe is found and not waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
        lock = open(os.open(self.path, flags, 0o666), "a")
        try:
            check_regular(os.fstat(lock.fileno()), self.path)
        except OSError:
            lock.close()
            raise
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.path.samestat(os.fstat(lock.fileno()), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            taken = False
        except OSError:  # a file system without locks: a second run goes unnoticed
            taken = True
        if not taken:
            lock.close()
            raise RuntimeError(f"{self.path.parent}: another process is training in this folder")
        _locks.add(lock)
        return lock

    def write(self, **row: Any) -> None:
        """Append one row. The arguments are those of `COLUMNS`."""
        try:
            self._writer.writerow([_text(row[name]) for name in COLUMNS])
            self._file.flush()
        except OSError as error:  # the row stays in the buffer of the file
            if not self._warned:
                line = printable(f"{self.path}: cannot be written ({error.strerror})")
                print(f"\n{line}", file=sys.stderr)
            self._warned = True

    def __enter__(self) -> LossLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # write() has warned already
        finally:
            self._lock.close()


def is_loss_log(path: Path) -> bool:
    """Return whether a file begins with the header of a loss CSV, or is empty.

    It is empty if a run was killed while it created the file.
    """
    start = ",".join(COLUMNS).encode()
    with open_regular(path) as file:
        return file.read(len(start)) in (b"", start)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rows_up_to(path: Path, last_step: int) -> list[list[str]]:
    if last_step == 0 or not path.exists():
        return []
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError):
        rows = [[]]
    if not rows:
        return []
    if tuple(rows[0]) not in (COLUMNS, COLUMNS[:-1]):
        raise ValueError(
            f"{path}: is not the loss CSV of a run: expected the columns {','.join(COLUMNS)}"
        )
    # A killed run may leave an incomplete last row.
    whole = [row for row in rows[1:] if len(row) == len(rows[0]) and _has_numbers(row)]
    blanks = [""] * (len(COLUMNS) - len(rows[0]))
    return [row + blanks for row in whole if int(row[0]) <= last_step]


def _has_numbers(row: list[str]) -> bool:
    try:
        return int(row[0]) >= 1 and all(math.isfinite(float(value)) for value in row[1:] if value)
    except ValueError:
        return False
