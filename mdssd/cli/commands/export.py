"""`mdssd export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mdssd.cli.commands.shared import show
from mdssd.detection.export import export
from mdssd.detection.quantized import load_network
from mdssd.system.files import writable_folder


def run(arguments: argparse.Namespace) -> int:
    writable_folder(Path(arguments.out).parent)  # now, not after the work
    form = arguments.format
    if not arguments.format_given and Path(arguments.out).suffix.lower() == ".pt2":
        form = "pt2"
    model, meta = load_network(arguments.checkpoint)
    export(
        model,
        arguments.out,
        form=form,
        classes=meta["classes"],
        mean=meta["mean"],
        score_threshold=arguments.score_threshold,
    )
    show(f"written: {arguments.out} ({form})")
    return 0
