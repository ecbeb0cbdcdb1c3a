"""The command `mdssd`: train, eval, detect, data, convert, export, info.

parser.py and options/ say what can be typed, commands/ what each verb does. A command's module is
imported only when it runs, so that `mdssd --help` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mdssd.cli.parser import make_parser
from mdssd.system.stop import interruptible

__all__ = ["main", "make_parser"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `mdssd` with these arguments.

    Args:
        argv: the arguments without the program's name; None takes those of the process.

    Returns:
        The exit status. 0: success. 1: some images could not be used, or `data check` found a
        fault. 2: wrong arguments or input; one line `mdssd: error: ...` on standard error says
        what is wrong. 130: interrupted by Ctrl-C. 143: terminated by SIGTERM.

    Example:
        >>> from mdssd.cli import main
        >>> main(["--version"])
        mdssd 0.1.0
        0
    """
    # Threads that spin while they wait cost 2.6 times the time on cores that other programs use.
    # libgomp reads this when PyTorch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with interruptible():
        try:
            words = list(sys.argv[1:] if argv is None else argv)
            return _run(make_parser().parse_args(argv, argparse.Namespace(words=words)))
        except SystemExit as end:  # argparse's, SIGTERM's, or another process has failed
            if note := getattr(end, "note", ""):
                print(f"mdssd: {note}", file=sys.stderr)
            return int(end.code or 0)
        except KeyboardInterrupt as interrupt:
            print("; ".join(["mdssd: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
            return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    try:
        command = import_module(f"mdssd.cli.commands.{arguments.command}")
        return int(command.run(arguments))
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if getattr(arguments, "traceback", False):
            raise
        print(f"mdssd: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__
