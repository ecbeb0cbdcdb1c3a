"""Lines about faults, "file: reason", and about losses, grouped by their reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from mdssd.system.text import plural, printable


def grouped(lines: Iterable[str]) -> list[str]:
    """Return the first line of each reason and the number of its others, the most frequent first.

    Args:
        lines: lines "file: reason". Two reasons are the same if they differ only in numbers, in
            quoted words and in what stands in brackets.

    Example:
        >>> from mdssd.data.reasons import grouped
        >>> grouped([f"{name}.xml: box (1, 2, {k}, 2) has no area" for k, name in enumerate("abc")])
        ['a.xml: box (1, 2, 0, 2) has no area, and 2 more like it']
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for line in lines:
        kind = _kind(line)
        first.setdefault(kind, printable(line))
        counts[kind] += 1
    return [
        first[kind] + (f", and {count - 1:,} more like it" if count > 1 else "")
        for kind, count in counts.most_common()
    ]


class Tally:
    """Lines about places with the same reason: the first place of each reason, and their number.

    Example:
        >>> from mdssd.data.reasons import Tally
        >>> tally = Tally()
        >>> for name in ("a.json", "b.json", "c.json"):
        ...     tally.add(name, "a point has no box; left out")
        >>> tally.lines()
        ['a.json: a point has no box; left out (and 2 more times)']
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def add(self, where: str, reason: str) -> None:
        """Count a place."""
        self._first.setdefault(reason, where)
        self._counts[reason] += 1

    def lines(self) -> list[str]:
        """Return a line for each reason, in the order of the first places."""
        lines = []
        for reason, where in self._first.items():
            more = self._counts[reason] - 1
            times = "time" if more == 1 else "times"
            lines.append(f"{where}: {reason}" + (f" (and {more:,} more {times})" if more else ""))
        return lines


class Losses:
    """Counts what a format cannot hold, to say it in one line for each kind.

    Example:
        >>> from mdssd.data.reasons import Losses
        >>> losses = Losses()
        >>> for name in "ab":
        ...     losses.add("box", "marked difficult", f"in {name}", "written as ordinary boxes")
        >>> losses.lines()
        ['2 boxes marked difficult: written as ordinary boxes; for example in a']
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._examples: dict[tuple[str, str, str], str] = {}
        self._lines: list[str] = []

    def add(self, noun: str, what: str, example: str, outcome: str, count: int = 1) -> None:
        """Count things of a kind.

        Args:
            noun: the thing, in the singular.
            what: what is particular about it.
            example: where one is.
            outcome: what is written instead.
            count: how many there are; may be 0.
        """
        if count:
            self._counts[noun, what, outcome] += count
            self._examples.setdefault((noun, what, outcome), example)

    def say(self, line: str) -> None:
        """Add a line of its own."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """Return a line for each kind, in the order they were found, and then the others."""
        lines = [
            f"{plural(count, noun)} {what}: {outcome}; "
            f"{'for example ' if count > 1 else ''}{self._examples[noun, what, outcome]}"
            for (noun, what, outcome), count in self._counts.items()
        ]
        return lines + self._lines


def _kind(line: str) -> str:
    """Return the reason in a line "file: reason" without what differs from file to file."""
    reason = re.sub(r"\w+\[\d+\](?: \([^()]*\))?: ", "", line.partition(": ")[2] or line)
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    reason = re.sub(r" ?\([^()]*\)| ?\[[^\[\]]*\]", "", reason)
    return re.sub(r"-?\d[\d.,]*", "N", reason)
