"""`mdssd info`."""

from __future__ import annotations

import argparse

from mdssd.cli.commands.shared import show
from mdssd.info import info


def run(arguments: argparse.Namespace) -> int:
    show(*info().split("\n"))
    return 0
