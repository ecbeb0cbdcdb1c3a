"""`mdssd export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mdssd.detection.export import export
from mdssd.system.files import writable_folder
from mdssd.weights.checkpoint import load_checkpoint


def run(arguments: argparse.Namespace) -> int:
    writable_folder(Path(arguments.out).parent)  # now, not after the work
    model, meta = load_checkpoint(arguments.checkpoint)
    export(
        model,
        arguments.out,
        form=arguments.format,
        classes=meta["classes"],
        mean=meta["mean"],
        score_threshold=arguments.score_threshold,
    )
    print(f"written: {arguments.out}")
    return 0
