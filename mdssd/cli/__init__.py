"""The command `mdssd`: train, eval, detect, data, convert, export, quantize, info.

parser.py and options/ say what can be typed, commands/ what each verb does, and errors.py turns
what went wrong into a message. A command's module is imported only when it runs, so that `mdssd
--help` does not wait for PyTorch.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module

from mdssd.cli.errors import CLOSED, FAILED, INTERRUPTED, describe, output_fault, safe_streams, say
from mdssd.cli.parser import make_parser
from mdssd.system.stop import interruptible

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `mdssd` with these arguments.

    Args:
        argv: the arguments without the program's name; None takes those of the process.

    Returns:
        The exit status. 0: success. 1: some images could not be used, or `data check` found a
        fault. 2: wrong arguments or input; one line `mdssd: error: ...` on standard error says
        what is wrong. 130: interrupted by Ctrl-C. 141: the program that read the output has
        ended, as `head` does. 143: terminated by SIGTERM.

    Example:
        >>> from mdssd.cli import main
        >>> main(["--version"])
        mdssd 0.1.0
        0
    """
    # Threads that spin while they wait cost 2.6 times the time on cores that other programs use.
    # libgomp reads this when PyTorch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Matplotlib logs three lines where it cannot keep a cache at home, which costs only time.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with interruptible(), safe_streams():
        words = list(sys.argv[1:] if argv is None else argv)
        arguments = Namespace(traceback=False, words=words)
        try:
            make_parser().parse_args(argv, arguments)
            command = import_module(f"mdssd.cli.commands.{arguments.command}")
            status = int(command.run(arguments))
        except SystemExit as end:  # argparse's, SIGTERM's, or another process has failed
            if note := getattr(end, "note", ""):
                say(f"mdssd: {note}")
            status = end.code if isinstance(end.code, int) else 0
        except KeyboardInterrupt as interrupt:
            say("; ".join(["mdssd: interrupted", *map(str, interrupt.args)]))
            status = INTERRUPTED
        except Exception as error:
            if fault := output_fault(error):
                return _unwritten(fault)
            if arguments.traceback:
                raise
            say(f"mdssd: error: {describe(error)}")
            status = FAILED
        fault = output_fault()
        return _unwritten(fault) if fault else status


def _unwritten(fault: OSError) -> int:
    """Say that standard output cannot be written, unless its reader has read enough."""
    if isinstance(fault, BrokenPipeError):
        return CLOSED
    say(f"mdssd: error: standard output cannot be written ({fault.strerror})")
    return FAILED
