"""The parser of the command line: one line for each verb."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from mdssd.cli.options import convert, data, detect, evaluate, export, info, train
from mdssd.version import __version__


class Parser(argparse.ArgumentParser):
    """argparse's parser with this project's form of error: one line, `mdssd: error: ...`."""

    def error(self, message: str) -> NoReturn:
        # torchrun starts several processes with the same arguments; only the first reports.
        first = os.environ.get("RANK", "0") == "0"
        self.exit(2, f"mdssd: error: {message} (see `{self.prog} --help`)\n" if first else None)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command and of all its subcommands.

    Returns:
        A parser whose result has the given options and `command`, the name of the module in
        mdssd/cli/commands that runs them.

    Example:
        >>> from mdssd.cli.parser import make_parser
        >>> arguments = make_parser().parse_args(["detect", "run", "a.jpg", "--csv"])
        >>> arguments.command, arguments.images, arguments.csv
        ('detect', ['a.jpg'], True)
    """
    parser = Parser(
        prog="mdssd", description="Find small objects: train, measure and run SSD and MDSSD."
    )
    parser.add_argument("--version", action="version", version=f"mdssd {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train.add_to(verbs)
    evaluate.add_to(verbs)
    detect.add_to(verbs)
    data.add_to(verbs)
    convert.add_to(verbs)
    export.add_to(verbs)
    info.add_to(verbs)
    return parser
