"""Options of `mdssd train` about which priors learn an object."""

from __future__ import annotations

import argparse

from mdssd.cli import values
from mdssd.names import MATCH_METRICS


def add_matching_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "matching"."""
    matching = parser.add_argument_group("matching")
    matching.add_argument(
        "--match-metric",
        choices=MATCH_METRICS,
        help="measure by which priors are matched with objects: iou (the default), or nwd, the "
        "normalised Wasserstein distance, for objects of a few pixels",
    )
    matching.add_argument(
        "--match-threshold",
        type=values.share,
        metavar="S",
        help="a prior learns the object with which its IoU or NWD is at least this (default 0.5)",
    )
    matching.add_argument(
        "--match-top-k",
        type=values.top_k,
        metavar="N",
        help="at least the N best priors learn each object (default 1)",
    )
    matching.add_argument(
        "--nwd-constant",
        type=values.pixels,
        metavar="PIXELS",
        help="with nwd, the distance in pixels of the network's input at which it is 1 / e "
        "(default 12.8)",
    )
