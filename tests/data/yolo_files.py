"""Writes folders with YOLO labels for the tests."""

import cv2
import numpy as np

BOX = "0 0.5 0.5 0.25 0.5\n"  # (30, 15, 50, 45) of an image of 80 x 60
BOX_XYXY = [30, 15, 50, 45]


def photo(path, size=(80, 60)):
    """Write an image of this (width, height). The folders of the path are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(map(ord, path.stem)) % 256
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), shade, np.uint8))
    return path


def write(path, text):
    """Write a text file. The folders of the path are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pair(root, split, name, rows=BOX, suffix=".png"):
    """Write images/SPLIT/NAME and labels/SPLIT/NAME; rows None writes no labels."""
    photo(root / "images" / split / f"{name}{suffix}")
    if rows is not None:
        write(root / "labels" / split / f"{name}.txt", rows)


def two_splits(root, yaml="train: images/train\nval: images/val\nnames: [car, bus]\n"):
    """Write a data.yaml, the images a and b of train and the image c of val."""
    pair(root, "train", "a")
    pair(root, "train", "b", "1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.5\n")
    pair(root, "val", "c")
    if yaml is not None:
        write(root / "data.yaml", yaml)
    return root
