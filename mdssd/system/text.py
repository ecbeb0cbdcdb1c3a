"""Numbers with their nouns, for messages."""

from __future__ import annotations


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
