"""Reading ahead in worker processes: order kept, a bounded queue, a crash named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

import cv2

from mdssd.data.sample import DataError

Source = TypeVar("Source")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Source, str], Result],
    sources: Iterable[tuple[Source, str]],
    workers: int,
    depth: int,
) -> Generator[tuple[Source, Result | DataError], None, None]:
    """Yield each source and `read(source, name)`, in order, computed by `workers` processes.

    read: must be picklable, as sources and results. A DataError that it raises is yielded as the
        result, as is one that says so where a source killed the process that read it. What else
        it raises is raised here.
    sources: each with its name for messages. Taken as they are needed; at most `depth` of them
        are being read or wait to be yielded.
    workers: 0 reads in this process.

    Closing the generator ends the processes, and so does the death of this process. They ignore
    Ctrl-C, which is for this process to act on.
    """
    if workers == 0:
        yield from ((source, _caught(read, source, name)) for source, name in sources)
        return
    remaining = iter(sources)
    while True:
        sent: deque[tuple[Source, str, Future[Any]]] = deque()
        try:
            with closing(_read_in_pool(read, remaining, workers, depth, sent)) as results:
                yield from results
            return
        except BrokenProcessPool:
            # Which of them it was shows when each has a process of its own.
            for source, name, _ in sent:
                yield source, _read_alone(read, source, name)


def _read_in_pool(
    read: Callable[[Source, str], Result],
    sources: Iterator[tuple[Source, str]],
    workers: int,
    depth: int,
    sent: deque[tuple[Source, str, Future[Any]]],
) -> Generator[tuple[Source, Result | DataError], None, None]:
    """As `read_ahead`; `sent` holds what was taken from `sources` and not yet yielded."""
    pool = _start_pool(workers)
    try:
        while True:
            for source, name in islice(sources, depth - len(sent)):
                sent.append((source, name, Future()))  # first, as a broken pool refuses more
                sent[-1] = (source, name, pool.submit(_caught, read, source, name))
            if not sent:
                return
            result = sent[0][2].result()
            yield sent.popleft()[0], result
    finally:
        pool.shutdown(cancel_futures=True)


def _read_alone(
    read: Callable[[Source, str], Result], source: Source, name: str
) -> Result | DataError:
    pool = _start_pool(1)
    try:
        return pool.submit(_caught, read, source, name).result()
    except BrokenProcessPool:
        return DataError(f"{name}: reading it killed the process that did")
    finally:
        pool.shutdown(cancel_futures=True)


def _caught(read: Callable[[Source, str], Result], source: Source, name: str) -> Result | DataError:
    try:
        return read(source, name)
    except DataError as error:
        return error


def _start_pool(workers: int) -> ProcessPoolExecutor:
    # Forked, where that is possible, as the others would run the caller's script again.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    return ProcessPoolExecutor(workers, context, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # OpenCV's own threads would only fight the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
