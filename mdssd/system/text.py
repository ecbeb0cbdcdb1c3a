"""Text for messages: numbers with their nouns, lists of names, and names that can be printed."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters, ends of lines and paragraphs, changes of the direction of writing, and half
# characters, which stand for bytes of a file's name that are no text.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind if it has none.

    Example:
        >>> from mdssd.system.text import first_line
        >>> first_line(OSError("disk full\\nmore")), first_line(AssertionError())
        ('disk full', 'AssertionError')
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def printable(line: str) -> str:
    r"""Return a line in which control characters are escapes, such as \x1b and \n.

    The name of a file or of a class may hold them. On a terminal they would change what other
    lines show, and in a table they would begin a new line. All other characters stay.

    Example:
        >>> from mdssd.system.text import printable
        >>> print(printable("Käfer \x1b[31mred\n"))
        Käfer \x1b[31mred\n
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
