"""Train the demo's checkpoint on generated scenes (`make demo-checkpoint`).

The run is kept in runs/demo. Running the script again resumes an interrupted run. The finished
weights are written next to this file in half precision.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mdssd import cli
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint

RUN = Path("runs/demo")
CHECKPOINT = Path(__file__).with_name("mdssd300-shapes.json")
# The objects have 8 to 40 pixels. The smallest priors of small have 10 pixels, those of coco 21.
COMMAND = """
    train --model mdssd300 --width 0.125 --batch-norm --prior-scales small --scenes 1600 --epochs 8
    --batch-size 4 --lr 0.02 --schedule cosine --warmup 50 --clip-gradient 10 --ema 0.99
    --expand 1 --crop-min-scale 0.7
"""


def main() -> int:
    resume = ["--resume"] if (RUN / "last.json").exists() else []
    status = cli.main([*COMMAND.split(), "--out", str(RUN), *resume])
    if status == 0:
        model, meta = load_checkpoint(RUN)
        save_checkpoint(
            CHECKPOINT,
            model,
            classes=meta["classes"],
            mean=meta["mean"],
            extra=meta["training"],
            half=True,
        )
        print(f"written: {CHECKPOINT}")
    return status


if __name__ == "__main__":
    sys.exit(main())
