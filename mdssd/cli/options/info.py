"""Options of `mdssd info`."""

from __future__ import annotations

from mdssd.cli.options.shared import Verbs, add_traceback


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("info", help="show versions, backends and devices")
    add_traceback(parser)
    parser.set_defaults(command="info")
