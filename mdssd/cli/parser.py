"""The parser of the command line: one line for each verb."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from mdssd.cli.errors import FAILED, say
from mdssd.cli.options import (
    convert,
    data,
    detect,
    evaluate,
    export,
    info,
    quantize,
    train,
)
from mdssd.version import __version__

DESCRIPTION = """Find small objects: train, measure and run SSD and MDSSD.

The first commands, from annotated photographs to a detector of your own:
  mdssd data check mydata/                     what the annotations hold
  mdssd train --data mydata/ --out runs/mine   train; --resume continues
  mdssd detect runs/mine photos/ --out found   find objects in new images

mydata/ holds images and annotations: YOLO labels, COCO, VOC, LabelMe, CVAT, CSV, KITTI or Hugging
Face. A file that describes them, such as data.yaml or a COCO JSON, can stand in its place."""
# The options that say where the data are; a run that is resumed knows them.
_SOURCES = ("data", "scenes", "resume", "print_recipe")
EPILOG = "`mdssd COMMAND --help` shows the options and an example of each command."


class Parser(argparse.ArgumentParser):
    """argparse's parser with this project's form of error: one line, `mdssd: error: ...`."""

    def __init__(
        self, *, examples: Sequence[str] = (), data: str | None = None, **keywords: Any
    ) -> None:
        """Make a parser; see argparse for the other keywords.

        examples: commands that the help shows at its end.
        data: what is typed before the place of a data set, if the command needs one.
        """
        if examples:
            noun = "example" if len(examples) == 1 else "examples"
            keywords["epilog"] = "\n  ".join([f"{noun}:", *examples])
        super().__init__(**keywords, formatter_class=_Formatter)
        self._examples, self._data = examples, data

    def error(self, message: str) -> NoReturn:
        if "are required" in message and self._examples:
            message += f"; for example: {self._examples[0]}"
        # torchrun starts several processes with the same arguments; only the first reports.
        if os.environ.get("RANK", "0") == "0":
            say(f"mdssd: error: {message} (see `{self.prog} --help`)")
        self.exit(FAILED)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # A subcommand is parsed by this method, too: it then reports what it does not know, and
        # refers to its own help.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            kind = "option" if word.startswith("-") else "argument"
            self.error(f"unknown {kind} {word}" + _nearest(word, self._option_string_actions))
        given = vars(found)
        if self._data is not None and not any(given.get(name) for name in _SOURCES):
            self.error(f"expected {self._data} (or --scenes N for generated scenes)")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice).lower() for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"unknown command {value}" + _nearest(value, choices, everything=True))
        hint = "; --input-size N gives it another input" if action.dest == "model" else ""
        raise argparse.ArgumentError(
            action, f"expected one of {', '.join(choices)}; got {str(value)!r}{hint}"
        )


def _nearest(word: str, known: Iterable[str], everything: bool = False) -> str:
    """A suggestion for a word that is not known."""
    names = {name.lstrip("-"): name for name in known}
    found = get_close_matches(word.lstrip("-"), names, n=1)
    if found:
        return f"; did you mean {names[found[0]]}?"
    return f"; expected one of {', '.join(known)}" if everything else ""


class _Formatter(argparse.HelpFormatter):
    """argparse's help, but options are not divided and indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(
            part if "\n  " in part else "\n".join(self._split_lines(part, width)) for part in parts
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


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
    parser = Parser(prog="mdssd", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"mdssd {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train.add_to(verbs)
    evaluate.add_to(verbs)
    detect.add_to(verbs)
    data.add_to(verbs)
    convert.add_to(verbs)
    export.add_to(verbs)
    quantize.add_to(verbs)
    info.add_to(verbs)
    return parser
