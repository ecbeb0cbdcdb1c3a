"""Writes VOC folders for the tests."""

import cv2
import numpy as np


def box_xml(name, box, extra=""):
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def make_folder(root, annotations, splits=None, size=(80, 60), suffix=".png"):
    """Write a VOC folder. annotations: the XML of the objects of each image id."""
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for k, (image_id, objects) in enumerate(annotations.items()):
        image = np.full((size[1], size[0], 3), 10 * k, np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{image_id}{suffix}"), image)
        write_xml(root, image_id, objects, size)
    if splits is not None:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        for split, text in splits.items():
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
    return root


def write_xml(root, image_id, objects, size=(80, 60)):
    (root / "Annotations" / f"{image_id}.xml").write_text(
        f"<annotation><filename>../../else.png</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"
    )


def three_images(root):
    """Write the images a, b and c, of which c has no box, and the splits trainval and test."""
    return make_folder(
        root,
        {
            "a": box_xml("zebra", (1, 2, 30, 40)) + box_xml("ant", (5.5, 6, 70, 50)),
            "b": box_xml("bee", (1, 1, 9, 9), "<difficult>1</difficult>"),
            "c": "",
        },
        {"trainval": "a\nc\n", "test": "b  -1\n\n"},
    )
