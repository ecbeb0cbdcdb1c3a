"""Reading the lists of a large JSON file entry by entry, so that memory does not grow with it."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from mdssd.system.files import format_bytes, open_regular

# An annotation takes some hundred bytes, and one with the mask of a whole image some kilobytes. As
# objects in memory, JSON takes up to thirty times its characters.
MAX_ENTRY = 16 << 20
# COCO's largest file has 450 MB, LVIS's 1.1 GB.
MAX_BYTES = 2 << 30
# LVIS has 1.3 million annotations.
MAX_ENTRIES = 5_000_000
_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


def read_lists(
    path: str | os.PathLike[str], receivers: Mapping[str, Callable[[int, Any], None]]
) -> set[str]:
    """Read the lists of the object that a JSON file holds.

    Args:
        path: the file, in UTF-8, UTF-16 or UTF-32.
        receivers: for the name of each list, what takes the position and the value of an entry.
            The other lists and values of the object are skipped.

    Returns:
        The names of the lists that were there.

    Raises:
        OSError: the file cannot be read, or has more than 2 GiB.
        ValueError: it is not such JSON, an entry has more than 16 million characters, or a list
            has more than 5 million entries.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mdssd.data.json_lists import read_lists
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     _ = path.write_text('{"info": 1, "images": [{"id": 7}, {"id": 8}], "x": []}')
        ...     sorted(read_lists(path, {"images": print}))
        0 {'id': 7}
        1 {'id': 8}
        ['images', 'x']
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"has {format_bytes(size)}, expected at most {format_bytes(MAX_BYTES)}"
            )
        return _Reader(file).object_of_lists(receivers)


class _Reader:
    """A position in a text that is read piece by piece; what lies before it is forgotten."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.read(4)
        file.seek(0)
        self._file = file
        self._encoding = json.detect_encoding(start)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        # Python refuses integers of more than 4300 digits; here they are infinite.
        self._json = json.JSONDecoder(parse_int=whole_number)
        self._text = ""
        self._at = 0
        self._before = 0  # characters that were forgotten
        self._ended = False

    def object_of_lists(self, receivers: Mapping[str, Callable[[int, Any], None]]) -> set[str]:
        found: set[str] = set()
        if self._next() != "{":
            raise ValueError("its top level is not an object" if self._text else "it is empty")
        self._at += 1
        more = self._next() != "}"
        while more:
            name = self._value()
            if not isinstance(name, str):
                raise self._error("expected a name in double quotes")
            self._expect(":")
            if self._next() == "[":
                found.add(name)
                self._list(receivers.get(name))
            else:
                self._value()
            more = self._more("}")
        self._at += 1
        if self._next():
            raise self._error("expected nothing after the object")
        return found

    def _list(self, receiver: Callable[[int, Any], None] | None) -> None:
        self._at += 1
        position = 0
        more = self._next() != "]"
        while more:
            entry = self._value()
            if receiver is not None:
                receiver(position, entry)
            position += 1
            if position > MAX_ENTRIES:
                raise self._error(f"expected at most {MAX_ENTRIES:,} entries in a list")
            more = self._more("]")
        self._at += 1

    def _more(self, end: str) -> bool:
        """Return whether a comma and another entry follow; if not, the end does."""
        if self._next() == end:
            return False
        self._expect(",")
        self._next()
        return True

    def _expect(self, mark: str) -> None:
        if self._next() != mark:
            raise self._error(f"expected {mark!r}")
        self._at += 1

    def _next(self) -> str:
        """Skip white space, and return the next character; "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                # A number might go on in the part of the file that is not read yet.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended and error.msg.startswith("Unterminated string"):
                    reason = "the file ends within a string that begins"
                    raise self._error(reason, error.pos) from None
                if self._ended:
                    raise self._error(error.msg, error.pos) from None
            except RecursionError:
                raise self._error("lists or objects are nested too deep") from None
            if len(self._text) - self._at > MAX_ENTRY:
                raise self._error(f"is broken, or has an entry of over {MAX_ENTRY:,} characters")
            self._fill()

    def _fill(self) -> bool:
        """Read as much again as is not used yet. Return whether there was more."""
        left = self._text[self._at :]
        self._before += self._at
        data = self._file.read(max(_CHUNK, len(left)))
        self._ended = not data
        try:
            self._text, self._at = left + self._decoder.decode(data, self._ended), 0
        except UnicodeDecodeError as error:
            raise ValueError(
                f"its text is not {self._encoding} ({error.reason}); save it as UTF-8"
            ) from None
        return not self._ended

    def _error(self, reason: str, at: int | None = None) -> ValueError:
        at = self._at if at is None else at
        where = self._before + at
        cut = ", where it ends" if self._ended and at >= len(self._text) else ""
        return ValueError(f"{reason} at character {where}{cut}")


def whole_number(digits: str) -> int | float:
    """Return the number that digits are, infinite if Python would refuse to read so many."""
    return int(digits) if len(digits) < 400 else float(digits)
