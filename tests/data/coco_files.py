"""Writes COCO files for the tests."""

import json

import cv2
import numpy as np

CONTENT = {
    "images": [
        {"id": 7, "file_name": "x.png", "width": 80, "height": 60},
        {"id": 3, "file_name": "y.png", "width": 80, "height": 60},
    ],
    "categories": [{"id": 44, "name": "kite"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 44, "bbox": [10, 20, 30, 15.5], "area": 77},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [4, 4, 0, 9], "iscrowd": 0},
    ],
}


def write(path, content, images="."):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    folder = path.parent / images
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("x.png", "y.png"):
        cv2.imwrite(str(folder / name), np.zeros((60, 80, 3), np.uint8))
    return path
