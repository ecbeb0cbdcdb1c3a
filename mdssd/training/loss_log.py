"""The CSV of a training run's losses."""

from __future__ import annotations

import csv
import importlib
import os
import sys
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mdssd.system.files import atomic_write, remove_leftovers

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows: two runs in one folder are then not noticed
    fcntl = None

# Workers that load images are forked from the process that holds the lock. With it in their hands a
# run that was killed could not be resumed until they have noticed, seconds later.
_locks: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in _locks:
        lock.close()  # the parent's stays


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)

COLUMNS = ("step", "epoch", "lr", "loc", "conf", "total", "images_per_s", "waiting")


class LossLog:
    """Appends rows to a CSV, each on the disk's way at once; the file stays locked while open.

    Rows: `COLUMNS`; step and epoch count from 1, the losses are means over the iterations since
    the row before, waiting is the share of its time (0 to 1) that passed until images were there.
    `last_step` is that of the checkpoint the run goes on from (0: a new run): later rows, of
    iterations that will be done again, are dropped on opening. A disk that is full ends no
    training: rows that cannot be written wait for the next, with a warning once.

    Raises:
        RuntimeError: another process is writing the file.
        ValueError: the file is there but is no such CSV.
    """

    def __init__(self, path: str | os.PathLike[str], last_step: int = 0) -> None:
        self.path = Path(path)
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._lock = self._take_lock()
        try:
            remove_leftovers(self.path)
            rows = _rows_up_to(self.path, last_step)
            with atomic_write(self.path) as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
            self._file: IO[str] = open(self.path, "a", encoding="utf-8", newline="")
        except BaseException:
            self._release_lock()
            raise
        self._warned = False
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _take_lock(self) -> IO[str]:
        lock = open(self._lock_path, "w")
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise RuntimeError(
                    f"{self.path.parent}: another process is training in this folder"
                ) from None
        _locks.add(lock)
        return lock

    def _release_lock(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()

    def write(self, **row: Any) -> None:
        """Add one row, given by the names in `COLUMNS`."""
        try:
            self._writer.writerow([_text(row[name]) for name in COLUMNS])
            self._file.flush()
        except OSError as error:  # what was not written stays in Python's buffer
            if not self._warned:
                print(f"\n{self.path}: cannot be written ({error.strerror})", file=sys.stderr)
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
            pass  # the warning has been given
        finally:
            self._release_lock()


def is_loss_log(path: Path) -> bool:
    """Whether a file that is there begins as this CSV does."""
    start = ",".join(COLUMNS).encode()
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rows_up_to(path: Path, last_step: int) -> list[list[str]]:
    if last_step == 0 or not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) not in (COLUMNS, COLUMNS[:-1]):
        raise ValueError(f"{path}: is not the loss CSV of a run: expected {','.join(COLUMNS)}")
    # A killed run may leave half a row at the end.
    whole = [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit()]
    blanks = [""] * (len(COLUMNS) - len(rows[0]))
    return [row + blanks for row in whole if int(row[0]) <= last_step]
