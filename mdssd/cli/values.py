"""The types of the command's options: each reads one argument and returns its value.

What is wrong with an argument is said here, before any work is done.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mdssd.names import INPUT_SIZES, LEAST_TILE_SIDE, MOST_TILE_PIXELS
from mdssd.system.kinds import kind_of_file

# Counts end in 32-bit fields of files and libraries.
_MOST = 2**31 - 1
# More threads or processes than this never help, and thousands of them can end the program.
_MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
_DEVICE = re.compile(r"(cpu|cuda|xpu|mps)(:\d{1,4})?")


def whole(least: int, most: int = _MOST) -> Callable[[str], int]:
    """Return the type of whole numbers from `least` to `most`."""
    limit = f" to {most}" if most < _MOST else ""

    def parse(text: str) -> int:
        known = text.isascii() and text.isdigit()
        if known and len(text) > 9 and int(text[:20]) > most:
            raise argparse.ArgumentTypeError(f"expected at most {most}, got {text[:20]}")
        value = int(text) if known else least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least}{limit}, got {text!r}"
            )
        return value

    return parse


count = whole(1)
number = whole(0)
threads = whole(1, _MOST_THREADS)
workers = whole(0, _MOST_THREADS)
detections = whole(1, 100_000)


def decimal(expected: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    """Return the type of finite numbers for which `holds`; `expected` says it in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


above_zero = decimal("a number above 0", lambda value: value > 0)
from_zero = decimal("a number of at least 0", lambda value: value >= 0)
below_one = decimal("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
fraction = decimal("a number from 0 to 1", lambda value: 0 <= value <= 1)
share = decimal("a number above 0 and at most 1", lambda value: 0 < value <= 1)
overlap = decimal("a number from 0 to 0.9", lambda value: 0 <= value <= 0.9)
tile_scale = decimal("a number above 0 and at most 16", lambda value: 0 < value <= 16)
tile_jitter = decimal("a number from 1 to 4", lambda value: 1 <= value <= 4)
top_k = whole(1, 1000)
pixels = decimal("a number of pixels from 0.1 to 10000", lambda value: 0.1 <= value <= 10_000)
picture_scale = decimal("a number above 0, up to 100", lambda value: 0 < value <= 100)
width = decimal("a number above 0 and at most 4", lambda value: 0 < value <= 4)
expand = decimal("a number from 1 to 16", lambda value: 1 <= value <= 16)


def input_size(text: str) -> int | tuple[int, int]:
    """The size of the network's input; whether the model can have it is found later."""
    match = re.fullmatch("([0-9]{1,9})(?:x([0-9]{1,9}))?", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(
            f"expected a multiple of {INPUT_SIZES.step} from {INPUT_SIZES[0]} to "
            f"{INPUT_SIZES[-1]}, or width x height as in 640x384; got {text!r}"
        )
    width, height = int(match[1]), int(match[2] or match[1])
    return width if width == height else (width, height)


def tile(text: str) -> int | tuple[int, int] | str:
    """The size of tiles in pixels, or "auto"."""
    if text == "auto":
        return text
    match = re.fullmatch("([0-9]{1,19})(?:x([0-9]{1,19}))?", text.lower())
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= width * height <= MOST_TILE_PIXELS:
        raise argparse.ArgumentTypeError(
            "expected auto, a number of pixels such as 300, or width x height such as 640x384, of "
            f"at most {MOST_TILE_PIXELS:,} pixels in all; got {text!r}"
        )
    if min(width, height) < LEAST_TILE_SIDE:
        raise argparse.ArgumentTypeError(
            f"expected sides of {LEAST_TILE_SIDE} pixels or more, as each tile is enlarged to the "
            f"network's input and costs a run of the network; got {text!r}"
        )
    return width if width == height else (width, height)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Return the type of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(choices)}; got {text!r}")
        return text

    return parse


def device(text: str) -> str:
    """The name of a device; whether there is one is found later."""
    if not _DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, cuda:1 ..., got {text!r}")
    return text


def folder(text: str) -> str:
    """A folder to write to, which may be missing."""
    path = Path(text)
    for part in (path, *path.parents):
        if part.is_dir():
            return text
        if part.exists() or part.is_symlink():
            raise argparse.ArgumentTypeError(
                f"expected a folder, but {part} is {kind_of_file(part)}"
            )
    return text


def new_file(text: str) -> str:
    """A file to write, in a folder that may be missing."""
    path = Path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file to write, but {text} is a folder")
    folder(str(path.parent))
    return text


def drops(text: str) -> list[float]:
    """Iterations or fractions of a run, separated by commas."""
    try:
        found = [int(part) if part.isdigit() else float(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    fractions = all(isinstance(drop, float) and 0 < drop < 1 for drop in found)
    iterations = all(isinstance(drop, int) and 0 < drop <= _MOST for drop in found)
    if not (fractions or iterations) or sorted(set(found)) != found:
        raise argparse.ArgumentTypeError(
            f"expected rising iterations or fractions as in 60000,100000 or 0.5,0.8; got {text!r}"
        )
    return found


def names(text: str) -> list[str]:
    """Distinct names, separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"expected distinct names as in a,b,c; got {text!r}")
    return found


def some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the type of some of these words, separated by commas."""

    def parse(text: str) -> list[str]:
        return [one_of(choices)(name) for name in names(text)]

    return parse


def some_or_none_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """The same type, but "none" is accepted too, for none of them."""

    def parse(text: str) -> list[str]:
        return [] if text == "none" else some_of(choices)(text)

    return parse


def or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same type, but "none" is accepted too: it switches off what a recipe switches on."""

    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    return parse
