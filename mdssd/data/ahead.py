"""Reading ahead in worker processes: in order, at a bounded depth, and safe from crashes."""

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
    """Yield each source with `read(source, name)`, in order, computed by worker processes.

    Closing the generator ends the workers, and so does the death of this process. Workers ignore
    Ctrl-C, so that this process decides how to stop.

    Args:
        read: the function to call. It, the sources and the results must be picklable. A DataError
            that it raises is yielded as the result; any other exception is raised here. If
            reading a source kills its worker, the result is a DataError that says so.
        sources: pairs of a source and its name for messages. They are taken when needed.
        workers: the number of processes. 0 reads in this process.
        depth: the most sources that are being read or wait to be yielded.
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
            # Read each pending source in its own process, to find the one that crashes it.
            for source, name, _ in sent:
                yield source, _read_alone(read, source, name)


def _read_in_pool(
    read: Callable[[Source, str], Result],
    sources: Iterator[tuple[Source, str]],
    workers: int,
    depth: int,
    sent: deque[tuple[Source, str, Future[Any]]],
) -> Generator[tuple[Source, Result | DataError], None, None]:
    """Do the work of `read_ahead`. `sent` holds the sources that were taken but not yielded."""
    pool = _start_pool(workers)
    try:
        while True:
            for source, name in islice(sources, depth - len(sent)):
                sent.append((source, name, Future()))  # before submit, which a broken pool refuses
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
        return DataError(f"{name}: the process that read it was killed")
    finally:
        pool.shutdown(cancel_futures=True)


def _caught(read: Callable[[Source, str], Result], source: Source, name: str) -> Result | DataError:
    try:
        return read(source, name)
    except DataError as error:
        return error


def _start_pool(workers: int) -> ProcessPoolExecutor:
    # Fork if possible: the other start methods import the caller's script again.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    return ProcessPoolExecutor(workers, context, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the process that forked it
    cv2.setNumThreads(0)  # OpenCV's own threads would compete with the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
