"""Reading PASCAL VOC's annotation files, which are XML that nobody vouches for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml

from mdssd.data.sample import MAX_BOXES, DataError
from mdssd.data.values import MAX_NAME, decode_text, flag, number, shown, stated_size, text
from mdssd.system.files import read_regular

# As a tree in memory, XML takes up to thirty times its bytes. A file of this size has 25,000 boxes.
MAX_BYTES = 8 << 20

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
# Files that name these hold characters of their supersets, as browsers and editors allow.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin-1": "cp1252"}


class VocObject(NamedTuple):
    """An object as the annotation states it."""

    name: str
    box_xyxy: tuple[float, float, float, float]
    difficult: bool
    place: str  # "object[2]", counted from 0


class VocAnnotation(NamedTuple):
    """An annotation file.

    Attributes:
        size: the stated (width, height) of the image; None if none is stated.
        objects: the objects that can be used.
        unusable: a line "file: reason" for each object that cannot.
        notes: a line for each value that was guessed.
        file_name: the name of the image, or "".
        names: the class names of all objects, also of those without a usable box.
    """

    size: tuple[float, float] | None
    objects: list[VocObject]
    unusable: list[str]
    notes: list[str]
    file_name: str
    names: frozenset[str]


def read_annotation(path: Path) -> VocAnnotation:
    """Read one annotation file. Raises DataError, naming the file and the reason."""
    root = _parse(path)
    size = stated_size(root.findtext("size/width"), root.findtext("size/height"))
    file_name = text(root.findtext("filename")) or ""
    annotation = VocAnnotation(size, [], [], [], file_name, frozenset())
    names = set()
    elements = root.findall(".//object")
    if len(elements) > MAX_BOXES:
        raise DataError(
            f"{path}: has {len(elements):,} objects, expected at most {MAX_BOXES:,} in an image"
        )
    for position, element in enumerate(elements):
        place = f"object[{position}]"
        name = text(element.findtext("name"))
        names |= {name} if name else set()
        try:
            box_xyxy = _box(element)
            if name is None:
                raise ValueError(_name_fault(element.findtext("name")))
        except ValueError as error:
            annotation.unusable.append(f"{path}: {place}: {error}")
            continue
        difficult = flag(element.findtext("difficult"))
        if difficult is None:
            value = shown(element.findtext("difficult"))
            annotation.notes.append(
                f"{path}: {place}: difficult is {value}, expected 0 or 1; taken as 0"
            )
        annotation.objects.append(VocObject(name, box_xyxy, bool(difficult), place))
    return annotation._replace(names=frozenset(names))


def _parse(path: Path) -> Element:
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        root = SafeXml.fromstring(_decode(data), forbid_dtd=True)
    except DefusedXmlException as error:
        raise DataError(f"{path}: refused, it declares a DTD or entities ({error})") from None
    except (ParseError, ValueError) as error:
        raise DataError(f"{path}: broken XML ({error})") from None
    if root.tag != "annotation" and root.find("object") is None and root.find("size") is None:
        raise DataError(
            f"{path}: not an annotation in VOC's format, whose outermost element is <annotation>; "
            f"found <{root.tag[:MAX_NAME]}>"
        )
    return root


def declared_encoding(data: bytes) -> str | None:
    """Return the encoding that the beginning of an XML file declares; None if it declares none.

    Example:
        >>> from mdssd.data.voc_xml import declared_encoding
        >>> declared_encoding(b'<?xml version="1.0" encoding="GB2312"?>')
        'gb18030'
    """
    declared = _DECLARED.match(data, 0, 1000)
    encoding = declared[1].decode().lower() if declared else None
    if encoding and encoding.startswith(("utf-16", "utf16", "utf-32", "ucs")):
        return "utf-8"  # its declaration could not have been read in that encoding
    return _SUPERSETS.get(encoding or "", encoding)


def _decode(data: bytes) -> str:
    """Decode XML as it declares; the parser itself knows only a few encodings, by one name each."""
    return decode_text(data, declared_encoding(data)).lstrip("\ufeff \t\r\n")


def _box(element: Element) -> tuple[float, float, float, float]:
    """Return the box of an object. Raises ValueError with the reason, without the file."""
    values = []
    for side in _SIDES:
        stated = element.findtext(f"bndbox/{side}")
        if stated is None:
            raise ValueError(f"has no bndbox/{side}")
        value = number(stated)
        if value is None:
            comma = ", with a point for the fraction" if "," in stated else ""
            raise ValueError(f"bndbox/{side} is {shown(stated)}, expected a number{comma}")
        values.append(value)
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def _name_fault(name: str | None) -> str:
    if not (name or "").strip():
        return "has no name"
    return f"name is {shown(name)}, expected 1 to {MAX_NAME} characters"
