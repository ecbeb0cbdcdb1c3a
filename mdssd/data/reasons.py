"""Lines about faults, "file: reason", grouped by their reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_EXAMPLES = 2


def grouped(lines: Iterable[str]) -> list[str]:
    """Return one line for each reason, the most frequent first, with a count and two examples.

    Args:
        lines: lines "file: reason". Two reasons are the same if they differ only in numbers, in
            quoted words and in what stands in brackets.

    Example:
        >>> from mdssd.data.reasons import grouped
        >>> grouped([f"{name}.xml: box (1, 2, {k}, 2) has no area" for k, name in enumerate("abc")])
        ['3 times: a.xml: box (1, 2, 0, 2) has no area; b.xml: box (1, 2, 1, 2) has no area; ...']
    """
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(kind_of_reason(line), []).append(line)
    result = []
    for group in sorted(groups.values(), key=len, reverse=True):
        shown = "; ".join(group[:_EXAMPLES]) + ("; ..." if len(group) > _EXAMPLES else "")
        result.append(f"{len(group)} times: {shown}" if len(group) > 1 else shown)
    return result


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


def kind_of_reason(line: str) -> str:
    """Return the reason in a line "file: reason" without what differs from file to file."""
    reason = re.sub(r"\w+\[\d+\]: ", "", line.partition(": ")[2] or line)
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    reason = re.sub(r" ?\([^()]*\)| ?\[[^\[\]]*\]", "", reason)
    return re.sub(r"-?\d[\d.,]*", "N", reason)
