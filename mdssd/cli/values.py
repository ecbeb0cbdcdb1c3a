"""The types of the command's options: each reads one argument and returns its value."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def number(text: str) -> int:
    """A whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def drops(text: str) -> list[float]:
    """Iterations or fractions of a run, separated by commas."""
    try:
        return [int(part) if part.isdigit() else float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected iterations or fractions as in 60000,100000 or 0.5,0.8; got {text!r}"
        ) from None


def names(text: str) -> list[str]:
    """Distinct names, separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"expected distinct names as in a,b,c; got {text!r}")
    return found


def or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same type, but "none" is accepted too: it switches off what a recipe switches on."""

    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    parse.__name__ = kind.__name__  # argparse's messages show it
    return parse
