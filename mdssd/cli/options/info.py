"""Options of `mdssd info`."""

from __future__ import annotations

from mdssd.cli.options.shared import Verbs, add_traceback

DESCRIPTION = """Show the versions of mdssd and of what it uses, whether its native module is there,
the devices and the backends of each operator. Include the output in a bug report."""


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "info",
        help="show versions, backends and devices",
        description=DESCRIPTION,
        examples=("mdssd info",),
    )
    add_traceback(parser)
    parser.set_defaults(command="info")
