"""Values that hypothesis draws for any format: the wrong, the odd and the damaged."""

from __future__ import annotations

import copy
import math
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400  # an integer that no float can hold

# What a program writes where another value was meant.
junk = st.one_of(
    st.sampled_from(
        [
            *(
                None,
                True,
                False,
                "",
                " ",
                "0",
                "1",
                "-1",
                "nan",
                "None",
                "\x00",
                "\ud800",
                "é",
                "e\u0301",
            ),
            *([], {}, [0], [None], {"a": 1}, [[]], "x" * 300, "../../x", "/etc/passwd", "a\\b.png"),
            *(0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), HUGE, -HUGE, 0.5, -0.0, 1e-40, 1e38, 1e308),
            *(math.nan, math.inf, -math.inf),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-9, 9), max_size=5),
)


def _places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in nested lists and dictionaries, the outermost excepted."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return []
    return [p for k, v in items for p in [(*prefix, k), *_places(v, (*prefix, k))]]


@st.composite
def damaged(draw: st.DrawFn, original: Any, most: int = 3) -> Any:
    """Draw a copy of nested lists and dictionaries with up to `most` values changed or removed."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, most))):
        *outer, last = draw(st.sampled_from(_places(value)))
        holder = value
        for key in outer:
            holder = holder[key]
        kind = draw(st.sampled_from(["junk", "junk", "remove", "repeat", "text"]))
        if kind == "junk":
            holder[last] = copy.deepcopy(draw(junk))  # later changes must not reach it
        elif kind == "remove":
            del holder[last]
        elif kind == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif isinstance(holder[last], int | float):
            holder[last] = str(holder[last])
        if not _places(value):
            break
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """Draw a copy of a file with bytes changed, cut off, removed, repeated or inserted."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["flip", "set", "cut", "remove", "repeat", "insert", "zero"]))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and at < len(data):
            data[at] = draw(st.sampled_from([0x00, 0x01, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)
