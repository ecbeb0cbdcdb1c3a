"""Draws the charts of an evaluation report as SVG, for a light or a dark page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdssd.drawing.figures import no_font_warnings, shorten
from mdssd.metrics import SizeResult, VocResult
from mdssd.metrics.sizes import SIZES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More points on a curve could not be distinguished in a panel of three inches.
_MOST_POINTS = 200
_CLASSES_A_ROW = 7


@dataclass(frozen=True)
class Theme:
    """The colours of a chart.

    Attributes:
        paper: the background.
        ink: the text.
        grid: the grid and the axes.
        accent: the main line.
        sizes: the bars of XS, S, M, L and XL.
    """

    paper: str
    ink: str
    grid: str
    accent: str
    sizes: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1f2328", "#d5d9de", "#0b62b8",
    ("#c2410c", "#e8a33d", "#8a9aa9", "#5fa8d3", "#0b62b8"),
)  # fmt: skip
DARK = Theme(
    "#16191d", "#e4e7ea", "#3a4048", "#63b0f5",
    ("#f0743e", "#f2bd62", "#8795a3", "#63b0f5", "#2f7fd0"),
)  # fmt: skip


def size_chart(
    sizes: SizeResult, classes: Sequence[str], theme: Theme, shown: Sequence[int] | None = None
) -> Figure:
    """Draw the normalised AP of each class with a bar per size and a dashed line for all sizes.

    The first group of bars is the mean over the classes. A row has seven groups, as in Fig. 6 of
    the MDSSD paper. `shown` are the positions of the classes to draw; None draws all.
    """
    rows_shown = np.arange(len(classes)) if shown is None else np.asarray(shown, np.int64)
    names = ["mean of classes", *(classes[k] for k in rows_shown)]
    values = np.vstack([sizes.mean_normalized_ap, sizes.normalized_ap[rows_shown]])  # [1 + K, 5]
    known = sizes.overall[~np.isnan(sizes.overall)]
    overall = [known.mean() if known.size else math.nan, *sizes.overall[rows_shown]]
    rows = math.ceil(len(names) / _CLASSES_A_ROW)
    columns = min(len(names), _CLASSES_A_ROW)
    figure = _panels(rows, 1, max(4.0, 1.5 * columns), 2.5, theme)
    for row, axes in enumerate(figure.axes):
        _style(axes, theme)
        first = row * _CLASSES_A_ROW
        for place, k in enumerate(range(first, min(first + _CLASSES_A_ROW, len(names)))):
            _size_bars(axes, 6.5 * place, values[k], overall[k], theme)
        ticks = names[first : first + _CLASSES_A_ROW]
        axes.set_xlim(-1, 6.5 * columns - 1)
        axes.set_xticks([6.5 * n + 2 for n in range(len(ticks))])
        axes.set_xticklabels([shorten(name, 16) for name in ticks], parse_math=False)
        axes.tick_params(axis="x", length=0, pad=14)
        axes.set_ylabel("normalised AP", color=theme.ink)
        axes.grid(visible=False, axis="x")
    return figure


def _size_bars(
    axes: Any, left: float, values: NDArray[np.float64], overall: float, theme: Theme
) -> None:
    for s, value in enumerate(values.tolist()):
        x = left + s
        axes.text(x, -0.02, SIZES[s], ha="center", va="top", size=7, color=theme.ink)
        if math.isnan(value):
            continue
        axes.bar(x, value, width=0.86, color=theme.sizes[s])
        text = f"{value:.2f}".removeprefix("0")
        behind = {"facecolor": theme.paper, "edgecolor": "none", "pad": 0.6}
        axes.text(
            x, value + 0.02, text, ha="center", va="bottom", size=7, color=theme.ink, bbox=behind
        )
    if not math.isnan(overall):
        axes.plot([left - 0.5, left + 4.5], [overall] * 2, "--", color=theme.ink, linewidth=0.9)


def curve_chart(
    voc12: VocResult, classes: Sequence[str], theme: Theme, shown: Sequence[int] | None = None
) -> Figure:
    """Draw precision over recall, with the VOC12 AP, in one panel per class that has objects.

    `shown` are the positions of the classes to draw; None draws all that have objects.

    The thin line is the precision. The thick line is its monotonic envelope, and the area under
    it is the AP.
    If no class has objects, a single panel says so.
    """
    if shown is None:
        shown = [k for k in range(len(classes)) if voc12.objects[k]]
    columns = min(max(len(shown), 1), 4)
    rows = max(math.ceil(len(shown) / columns), 1)
    figure = _panels(rows, columns, 2.7, 2.4, theme)
    for k, axes in zip(shown, figure.axes, strict=False):
        _style(axes, theme)
        recall, precision = voc12.curve(k + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        some = _thin(recall)
        axes.plot(recall[some], precision[some], color=theme.sizes[2], linewidth=0.7)
        if some.size:  # the class has detections
            axes.step(
                [0.0, *recall[some]],
                [envelope[0], *envelope[some]],
                where="pre",
                color=theme.accent,
                linewidth=1.5,
            )
        axes.set_xlim(0, 1.02)
        axes.set_title(
            f"{shorten(classes[k], 24)}  {voc12.ap[k]:.3f}",
            size=9,
            color=theme.ink,
            parse_math=False,
        )
    for number, axes in enumerate(figure.axes):
        if number >= len(shown):
            axes.set_axis_off()
        if number % columns == 0:
            axes.set_ylabel("precision", color=theme.ink)
        if number + columns >= len(shown):
            axes.set_xlabel("recall", color=theme.ink)
    if not shown:
        figure.axes[0].text(0.5, 0.5, "no objects", ha="center", color=theme.ink)
    return figure


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG without a date. Text stays text, in the browser's fonts."""
    import matplotlib

    buffer = io.BytesIO()
    options = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdssd"})
    with options, no_font_warnings():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _panels(rows: int, columns: int, width: float, height: float, theme: Theme) -> Figure:
    """Return a figure of panels. A panel and its labels take `width` x `height` inches.

    The positions are fixed because Matplotlib's own layout takes seconds for dozens of panels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), facecolor=theme.paper)
    left, right, top, bottom = 0.62, 0.12, 0.32, 0.48
    across = columns * width - left - right
    down = rows * height - top - bottom
    gap_x, gap_y = 0.45, 0.55
    figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / (columns * width),
            "right": 1 - right / (columns * width),
            "bottom": bottom / (rows * height),
            "top": 1 - top / (rows * height),
            "wspace": gap_x * columns / (across - gap_x * (columns - 1)),
            "hspace": gap_y * rows / (down - gap_y * (rows - 1)),
        },
    )
    return figure


def _style(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(colors=theme.ink, labelsize=8)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_color(theme.grid)
        spine.set_visible(name in ("left", "bottom"))


def _thin(recall: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the points to draw: those at which recall rises, thinned evenly, and the last."""
    rises = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
    some = np.linspace(0, max(len(rises) - 1, 0), min(len(rises), _MOST_POINTS)).astype(np.int64)
    return np.unique([*rises[some], *range(len(recall))[-1:]]).astype(np.int64)
