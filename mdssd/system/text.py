"""Numbers with their nouns and lists of names, for messages."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: float, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> from mdssd.system.text import plural
        >>> plural(1, "image"), plural(1200, "epoch"), plural(2, "box"), plural(2, "batch")
        ('1 image', '1,200 epochs', '2 boxes', '2 batches')
    """
    if count == 1:
        return f"1 {noun}"
    number = f"{count:g}" if isinstance(count, float) else f"{count:,}"
    return f"{number} {noun}{'es' if noun.endswith(('x', 's', 'tch')) else 's'}"


def some(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and the number of the others.

    Example:
        >>> from mdssd.system.text import some
        >>> some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
