"""Reading numbers, flags, ids and text from annotations, in the forms in which tools write them."""

from __future__ import annotations

import codecs
import json
import math
import re
import reprlib
from typing import Any

# The most characters of a name. Longer ones are damage, and would fill every message.
MAX_NAME = 1000

_YES = frozenset({"1", "true", "yes", "y", "t"})
_NO = frozenset({"", "0", "false", "no", "n", "f", "none", "null", "unspecified"})
# They decode anything, or in a time that grows with the square of the length.
_NO_ENCODINGS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})
_SHOW = reprlib.Repr()
_SHOW.maxstring, _SHOW.maxother = 80, 80


def shown(value: Any) -> str:
    """Return a value as a message shows it: long ones are cut, and None is "missing".

    Example:
        >>> from mdssd.data.values import shown
        >>> shown("7,5"), shown(None), len(shown("x" * 10**6)), len(shown(10**400))
        ("'7,5'", 'missing', 80, 40)
    """
    if value is None:
        return "missing"
    try:
        return _SHOW.repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        return "a number of thousands of digits"


def number(value: Any) -> float | None:
    """Return a number, also one written as text; None if it is none. Too great ones are infinite.

    Example:
        >>> from mdssd.data.values import number
        >>> number(3), number(" 7.5 "), number(10**400), number("7,5"), number(True), number(None)
        (3.0, 7.5, inf, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and (len(value) > MAX_NAME or "_" in value):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf if int(value) > 0 else -math.inf


def flag(value: Any) -> bool | None:
    """Return a yes or no, as a number or a word; None if it is neither. Nothing means no.

    Example:
        >>> from mdssd.data.values import flag
        >>> flag(1), flag("0"), flag("Unspecified"), flag(None), flag("TRUE"), flag("perhaps")
        (True, False, False, False, True, None)
    """
    if value is None:
        return False
    if isinstance(value, str):
        word = value[:MAX_NAME].strip().lower()
        if word in _YES or word in _NO:
            return word in _YES
    result = number(float(value) if isinstance(value, bool) else value)
    return None if result is None or math.isnan(result) else result != 0


def stated_size(width: Any, height: Any) -> tuple[float, float] | None:
    """Return the size of an image as its annotation states it; None if it states none.

    A side that is no number is NaN.

    Example:
        >>> from mdssd.data.values import stated_size
        >>> stated_size("300", 200.0), stated_size(None, ""), stated_size("wide", 5)
        ((300.0, 200.0), None, (nan, 5.0))
    """
    if all(
        side is None or (isinstance(side, str) and not side.strip()) for side in (width, height)
    ):
        return None
    sides = [number(side) for side in (width, height)]
    return tuple(math.nan if side is None else side for side in sides)  # type: ignore[return-value]


def key(value: Any) -> int | str | None:
    """Return an id, so that 7, 7.0 and "7" are the same; None if the value cannot be one.

    Example:
        >>> from mdssd.data.values import key
        >>> key(7), key("7"), key(7.0), key(" a7 "), key("07"), key(7.5), key(None), key(True)
        (7, 7, 7, 'a7', '07', None, None, None)
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1 << 63 else None
    if not isinstance(value, str) or text(value) is None:
        return None
    value = value.strip()
    # Only what a number would be written as: "07" is another id than 7.
    return int(value) if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) else value


def text(value: Any) -> str | None:
    """Return a name without the space around it; None if it is empty, too long or unprintable.

    Example:
        >>> from mdssd.data.values import text
        >>> text(" car "), text("  "), text(5), text("x" * 2000), text(chr(0xD800))
        ('car', None, None, None, None)
    """
    if not isinstance(value, str) or len(value) > 2 * MAX_NAME:
        return None
    value = value.strip()
    if not value or len(value) > MAX_NAME:
        return None
    lone = any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value)
    return None if lone else value


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """Decode the bytes of a text file by its byte order mark, else by `encoding`, else as UTF-8.

    Args:
        data: the bytes.
        encoding: a name of Python's, such as "gb2312" or "utf8".

    Raises:
        ValueError: the encoding is unknown, or the bytes are not in it.

    Example:
        >>> from mdssd.data.values import decode_text
        >>> decode_text("é".encode("latin-1"), "latin-1"), decode_text("é".encode("utf-16"))
        ('é', 'é')
    """
    if encoding is None and data.isascii() and b"\0" not in data:
        return data.decode("ascii")  # the usual case, at once; UTF-16 without a mark has zeros
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            try:
                return data.decode(name)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"its first bytes declare {name}, but byte {error.start} is not in it; "
                    "convert it to UTF-8"
                ) from None
    name = encoding or json.detect_encoding(data[:4])
    try:
        if codecs.lookup(name).name.replace("-", "_") in _NO_ENCODINGS:
            raise LookupError
        return data.decode(name)
    except LookupError:
        raise ValueError(f"its encoding {shown(name)} is unknown; convert it to UTF-8") from None
    except UnicodeDecodeError as error:
        stated = "it declares" if encoding else "no encoding is declared, so it should be"
        raise ValueError(
            f"{stated} {name}, but byte {error.start} is not in it; convert it to UTF-8"
        ) from None
