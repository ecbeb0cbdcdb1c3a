"""`mdssd info`."""

from __future__ import annotations

import argparse

from mdssd.info import info


def run(arguments: argparse.Namespace) -> int:
    print(info())
    return 0
