"""Turn whatever ends a command into one line for the user and an exit status."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from mdssd.system.text import printable

FAILED, INTERRUPTED, CLOSED = 2, 130, 141
# Characters of a message, which may quote what a file contains.
_LONGEST = 2000

# What PyTorch's DataLoader makes of an error in a worker. The last line of the traceback that is
# not indented has the type and the message of the error.
_IN_WORKER = re.compile(
    r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback.*\n(?:[\w.]+\.)?\1"
    r"(?:: (?P<message>.*))?\s*\Z",
    re.DOTALL,
)
_LESS_MEMORY = "fewer --workers or a smaller --batch-size"
# What PyTorch and the system say of a lack of something, and what the user can do about it.
_REMEDIES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), remedy)
    for pattern, remedy in (
        (
            r"out of shared memory|signal: Bus error"
            r"|unable to (write|mmap|resize|allocate|open).*(No space left|Cannot allocate)",
            f"shared memory (/dev/shm) is full; use {_LESS_MEMORY}, or give a container more with "
            "docker run --shm-size=2g",
        ),
        (
            r"Too many open files|received \d+ items of ancdata",
            "too many open files; raise the limit with `ulimit -n 4096`, or use fewer --workers",
        ),
        (
            r"DataLoader worker.*(killed by signal|exited unexpectedly)|BrokenProcessPool",
            "a process that loads images was killed, most likely for lack of memory; use "
            f"{_LESS_MEMORY}, and continue a training run with --resume",
        ),
        (
            r"(CUDA|HIP|XPU)( error)?: out of memory|(CUDA|HIP|XPU) out of memory",
            "the memory of the GPU is not enough; use a smaller --batch-size, in training also "
            "--accumulate or --amp bf16",
        ),
        (
            r"MemoryError|DefaultCPUAllocator|std::bad_alloc|Insufficient memory",
            "the memory of this machine is not enough; use "
            f"{_LESS_MEMORY}, in training also --accumulate",
        ),
        (
            r"can't start new thread|Resource temporarily unavailable",
            "the system allows no more threads or processes; use fewer --workers and --threads",
        ),
        (r"RecursionError", "the input is nested too deeply"),
    )
)
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# What is raised for wrong input. Any other exception is a fault of the program.
_EXPECTED = (ValueError, OSError, RuntimeError, ImportError)


def describe(error: BaseException) -> str:
    """Return what went wrong as one line.

    Args:
        error: the exception that ended the command.

    Returns:
        The message without "mdssd: error:". An error of the operating system has its file, an error
        in a worker process its own message, and a lack of memory, of disk space or of files the
        remedy.

    Example:
        >>> from mdssd.cli.errors import describe
        >>> describe(FileNotFoundError(2, "No such file or directory", "a.json"))
        'a.json: No such file or directory'
    """
    # Wrong input has a message of its own, which may quote anything.
    if not isinstance(error, (ValueError, ImportError)):
        causes = "\n".join(_causes(error))
        for pattern, remedy in _REMEDIES:
            if pattern.search(causes):
                return _with_file(error, remedy)
    text = str(error)
    if worker := _IN_WORKER.search(text):
        text = worker["message"] or worker[1]
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"cannot be written, the disk is full ({text})"
    line = _with_file(error, _joined(text) or type(error).__name__)
    if isinstance(error, _EXPECTED) and not isinstance(error, UnicodeError):
        return line
    return f"unexpected {type(error).__name__}: {line} (a bug in mdssd; --traceback shows where)"


def _causes(error: BaseException) -> Iterator[str]:
    """Yield types and messages of an error and of those that led to it."""
    each: BaseException | None = error
    while each is not None:
        yield f"{type(each).__name__}: {each}"
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _with_file(error: BaseException, reason: str) -> str:
    names = (getattr(error, "filename", None), getattr(error, "filename2", None))
    files = " -> ".join(str(name) for name in names if name is not None)
    return f"{files}: {reason}" if isinstance(error, OSError) and files else reason


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def say(line: str) -> None:
    """Print a line to standard error; leave out the middle of a long one."""
    line = printable(line)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 200]} ... {line[-200:]}"
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            print(line, file=sys.stderr, flush=True)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Within the block, let no character and no closed stream end the program.

    Characters that an output cannot show are printed as escapes, lines are written at once, and
    warnings are lines of this command. Closed standard streams are opened on the null device:
    the next file to be opened would take their place and receive what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    before = [(stream, stream.errors, stream.line_buffering) for stream in streams]
    form, hook = warnings.formatwarning, sys.unraisablehook
    try:
        for stream in streams:
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        warnings.formatwarning = _format_warning
        # What is being thrown away may fail at that; it would print a traceback after the message.
        sys.unraisablehook = lambda _: None
        yield
    finally:
        warnings.formatwarning, sys.unraisablehook = form, hook
        for stream, errors, buffered in before:
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors, line_buffering=buffered)


def _format_warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"mdssd: warning: {printable(_joined(str(message)))}\n"


def output_fault(error: Exception | None = None) -> OSError | None:
    """Return why standard output or standard error cannot be written, or None if both can.

    What such a stream still holds is dropped; Python would complain of it at its end.

    Args:
        error: what ended the command. A stream raises its fault once and without a name; to tell
            it from the fault of a file without a name, this prints an empty line.
    """
    unnamed = isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
            if unnamed:
                print(file=stream, flush=True)
        except OSError as fault:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            return fault
    return None
