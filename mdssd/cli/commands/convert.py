"""`mdssd convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mdssd.cli.commands.shared import show
from mdssd.system.files import writable_folder
from mdssd.weights.convert import convert, json_path


def run(arguments: argparse.Namespace) -> int:
    writable_folder(Path(arguments.out).parent)  # now, not after the work
    found = convert(
        arguments.source,
        arguments.out,
        classes=arguments.classes,
        prior_scales=arguments.prior_scales,
    )
    assert found.config is not None
    show(
        f"{found.layout}: {found.config['model']}, {found.config['num_classes']} classes with "
        f"background, prior scales {found.config['prior_scales']}: "
        f"{json_path(arguments.out)}"
    )
    return 0
