"""Sizes of priors that have no name, such as those fitted to a data set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mdssd.priors.boxes import PriorLayer

# (width, height) in input pixels of each prior of a cell, for each map of a model.
Sizes = tuple[tuple[tuple[float, float], ...], ...]

# No width or height of a prior is greater, in input pixels.
_MOST_PIXELS = 10_000


def check_sizes(where: str, sizes: Any) -> None:
    """Check that sizes are (width, height) pairs of pixels, in a tuple or list for each map.

    Raises:
        ValueError: they are not; the message begins with `where` and names the map and the prior.

    Example:
        >>> from mdssd.priors import check_sizes
        >>> check_sizes("a recipe", [[[10, 20], [30, 30]]])
    """
    if not isinstance(sizes, list | tuple) or not sizes:
        raise ValueError(
            f"{where}: prior_scales: expected a list for each map, got {_shown(sizes)}"
        )
    for number, of_map in enumerate(sizes, 1):
        if not isinstance(of_map, list | tuple) or not of_map:
            raise ValueError(
                f"{where}: prior_scales: map {number}: expected a list of [width, height], got "
                f"{_shown(of_map)}"
            )
        for place, pair in enumerate(of_map, 1):
            if not (
                isinstance(pair, list | tuple)
                and len(pair) == 2
                and all(type(side) in (int, float) and 0 < side <= _MOST_PIXELS for side in pair)
            ):
                raise ValueError(
                    f"{where}: prior_scales: map {number}, prior {place}: expected [width, height] "
                    f"in pixels, each above 0 and at most {_MOST_PIXELS}; got {_shown(pair)}"
                )


def with_sizes(where: str, layers: Sequence[PriorLayer], sizes: Sizes) -> tuple[PriorLayer, ...]:
    """Return the layers with other sizes of their priors; each keeps its number of priors.

    Args:
        where: the model, for messages.
        layers: the layers.
        sizes: for each of them, (width, height) of each prior of a cell, in input pixels.

    Raises:
        ValueError: a size is no pair of numbers above 0, or there are more or fewer of them.

    Example:
        >>> from mdssd.priors import make_priors, PriorLayer, with_sizes
        >>> layer = PriorLayer(size=1, step=100, min_size=50, max_size=72, aspect_ratios=())
        >>> make_priors(with_sizes("mine", [layer], (((40, 20), (80, 80)),)), 100)
        tensor([[0.5000, 0.5000, 0.4000, 0.2000],
                [0.5000, 0.5000, 0.8000, 0.8000]])
    """
    check_sizes(where, sizes)
    expected, got = [layer.per_cell for layer in layers], [len(of_map) for of_map in sizes]
    if got != expected:
        raise ValueError(
            f"{where}: prior_scales: expected sizes for {len(expected)} maps, {expected} of them; "
            f"got {len(got)} maps, {_shown(got)}"
        )
    return tuple(
        replace(layer, sizes=tuple((width, height) for width, height in of_map))
        for layer, of_map in zip(layers, sizes, strict=True)
    )


def scales_name(prior_scales: str | Sizes) -> str:
    """Return the name of a set of priors for people to read: "fitted" for sizes without a name.

    Example:
        >>> from mdssd.priors import scales_name
        >>> scales_name("coco"), scales_name((((40, 20),),))
        ('coco', 'fitted')
    """
    return prior_scales if isinstance(prior_scales, str) else "fitted"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
