"""Matplotlib figures: saving them, and names in them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mdssd.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG, which is replaced at once or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path, "wb") as file, no_font_warnings():
        FigureCanvasAgg(figure).print_png(file)


def shorten(name: str, most: int) -> str:
    """Cut a name to `most` letters, so that it does not run into its neighbour's."""
    return name if len(name) <= most else name[: most - 1] + "…"


@contextmanager
def no_font_warnings() -> Iterator[None]:
    """Suppress Matplotlib's warnings about letters that its own font lacks.

    Matplotlib measures text with that font, but an SVG is shown in the reader's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
