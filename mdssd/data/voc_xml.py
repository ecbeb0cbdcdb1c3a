"""Reading PASCAL VOC's annotation files, which are XML that nobody vouches for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml

from mdssd.data.sample import DataError

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """An object as the annotation states it."""

    name: str
    box_xyxy: tuple[float, float, float, float]
    difficult: bool


class VocAnnotation(NamedTuple):
    """An annotation: (width, height) of the image as stated, and its objects."""

    size: tuple[int, int]
    objects: list[VocObject]


def read_annotation(path: Path) -> VocAnnotation:
    """Read one annotation file. Raises DataError, naming the file and the reason."""
    root = _parse(path)
    width = _number(root, "size/width", path)
    height = _number(root, "size/height", path)
    objects = []
    for element in root.iter("object"):
        x1, y1, x2, y2 = (_number(element, f"bndbox/{side}", path) for side in _SIDES)
        stated = element.find("difficult") is not None
        difficult = stated and _number(element, "difficult", path) != 0
        objects.append(VocObject(_class_name(element, path), (x1, y1, x2, y2), difficult))
    if not (np.isfinite(width) and np.isfinite(height)):
        raise DataError(f"{path}: size is {width} x {height}, expected two numbers")
    return VocAnnotation((int(width), int(height)), objects)


def _parse(path: Path) -> Element:
    try:
        return SafeXml.fromstring(path.read_bytes(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise DataError(f"{path}: refused, it declares a DTD or entities ({error})") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: broken XML ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _class_name(element: Element, path: Path) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: an object has no name")
    return name


def _number(parent: Element, name: str, path: Path) -> float:
    text = parent.findtext(name)
    if text is None:
        raise DataError(f"{path}: {parent.tag} has no {name}")
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path}: {name} is {text!r}, expected a number") from None
