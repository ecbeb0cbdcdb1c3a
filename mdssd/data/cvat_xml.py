"""Reading the XML of CVAT image by image, so that memory does not grow with the file."""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml

from mdssd.data.sample import MAX_BOXES, DataError, box_around
from mdssd.data.values import number, shown, text
from mdssd.data.voc_xml import declared_encoding
from mdssd.system.files import format_bytes, open_regular

MAX_BYTES = 4 << 30
# Bytes of one element. The mask of a whole photograph takes some hundred kilobytes.
_MAX_ELEMENT = 16 << 20
_MAX_DEPTH = 32
_MAX_ATTRIBUTES = 1000  # of a shape
_CHUNK = 1 << 16
# A label of these kinds has no box.
_NO_BOXES = ("points", "polyline", "tag", "skeleton")


class CvatShape(NamedTuple):
    """A shape of an image: its element's name and attributes, CVAT's attributes, and its line."""

    kind: str
    values: dict[str, str]
    attributes: dict[str, str]
    line: int = 0


class CvatImage(NamedTuple):
    """An image: the attributes of its element, its shapes, and its line."""

    values: dict[str, str]
    shapes: list[CvatShape]
    line: int = 0


class CvatFile:
    """A file of CVAT for images.

    Args:
        path: the file.

    Attributes:
        labels: the names that its head declares for shapes with boxes, known after `images`.
        subset: of the task, known with the first image; "" if the head states none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: dict[str, None] = {}
        self.subset = ""

    def images(self) -> Iterator[CvatImage]:
        """Yield the images, in the order of the file.

        Raises:
            DataError: the file cannot be read, or is something else. The message says where.
        """
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MAX_BYTES:
                    raise ValueError(
                        f"has {format_bytes(size)}, expected at most {format_bytes(MAX_BYTES)}"
                    )
                yield from self._images(file)
        except OSError as error:
            raise self._fault(f"cannot be read ({error.strerror})") from None
        except DefusedXmlException as error:
            raise self._fault(f"refused, it declares a DTD or entities ({error})") from None
        except ParseError as error:
            ends = any(what in str(error) for what in ("no element found", "unclosed"))
            cut = ", where the file ends" if ends else ""
            raise self._fault(f"broken XML ({error}{cut})") from None
        except (DataError, GeneratorExit):
            raise
        except LookupError as error:  # of Python, about an encoding that it does not know
            raise self._fault(f"{error}; convert it to UTF-8") from None
        except UnicodeDecodeError as error:
            raise self._fault(
                f"it declares {error.encoding}, but a byte is not in it; convert it to UTF-8"
            ) from None
        except ValueError as error:
            raise self._fault(str(error)) from None

    def _images(self, file: BinaryIO) -> Iterator[CvatImage]:
        target = _Target(self)
        data = file.read(_CHUNK)
        decoder = _decoder(data)
        parser = SafeXml.DefusedXMLParser(
            target=target, encoding="utf-8" if decoder else None, forbid_dtd=True
        )
        # Expat calls the target itself, in half the time, and knows the line.
        expat = parser.parser
        expat.ordered_attributes = expat.specified_attributes = False
        expat.StartElementHandler, expat.EndElementHandler = target.start, target.end
        expat.CharacterDataHandler = target.data
        target.line = lambda: expat.CurrentLineNumber
        while data:
            target.unused += len(data)
            if target.unused > _MAX_ELEMENT:
                raise ValueError(f"has an element of more than {format_bytes(_MAX_ELEMENT)}")
            parser.feed(decoder.decode(data).encode() if decoder else data)
            yield from target.images
            target.images.clear()
            data = file.read(_CHUNK)
        if decoder:
            decoder.decode(b"", final=True)
        parser.close()

    def _fault(self, reason: str) -> DataError:
        return DataError(f"{self.path}: {reason}")


def _decoder(start: bytes) -> codecs.IncrementalDecoder | None:
    """Return what decodes a file that begins so; None if the parser knows its encoding itself."""
    name = declared_encoding(start)
    if name is None or name in ("utf-8", "us-ascii"):
        return None
    b"".decode(name)  # raises LookupError if it is no encoding of text
    return codecs.getincrementaldecoder(name)()


class _Target:
    """Takes the elements of a file as the parser comes to them, and keeps the whole images."""

    def __init__(self, file: CvatFile) -> None:
        self.images: list[CvatImage] = []
        self.unused = 0  # bytes that were read since the last element
        self.line: Callable[[], int] = lambda: 0
        self._file = file
        self._tags: list[str] = []
        self._image: CvatImage | None = None
        self._shape: CvatShape | None = None
        self._attribute = ""
        self._label: dict[str, str] = {}
        self._text: list[str] = []

    def start(self, tag: str, values: dict[str, str]) -> None:
        self.unused = 0
        self._text = []
        self._tags.append(tag)
        depth = len(self._tags)
        if depth == 1 and tag != "annotations":
            raise ValueError(f"not a file of CVAT: found <{tag[:40]}>, expected <annotations>")
        if depth == 2 and tag == "track":
            raise ValueError(
                f"line {self.line()}: <track> is of the format CVAT for video; "
                "expected CVAT for images 1.1: choose that when you export the task"
            )
        if depth > _MAX_DEPTH:
            raise ValueError(f"line {self.line()}: the elements are nested too deep")
        if depth == 2 and tag == "image":
            self._image = CvatImage(values, [], self.line())
        elif depth == 3 and self._image is not None:
            self._shape = CvatShape(tag, values, {}, self.line())
        elif depth == 4 and self._shape is not None:
            self._attribute = values.get("name", "") if tag == "attribute" else ""
        elif tag == "label":
            self._label = {}

    def data(self, text: str) -> None:
        self._text.append(text)

    def end(self, tag: str) -> None:
        self.unused = 0
        self._tags.pop()
        depth = len(self._tags)
        if self._image is None:
            self._end_of_head(tag, "".join(self._text).strip())
        elif depth == 3 and self._shape is not None and self._attribute:
            self._shape.attributes[self._attribute] = "".join(self._text).strip()
            self._attribute = ""
            if len(self._shape.attributes) > _MAX_ATTRIBUTES:
                raise ValueError(
                    f"line {self.line()}: has more than {_MAX_ATTRIBUTES:,} attributes"
                )
        elif depth == 2 and self._shape is not None:
            self._image.shapes.append(self._shape)
            self._shape = None
            if len(self._image.shapes) > MAX_BOXES:
                raise ValueError(f"line {self.line()}: an image has more than {MAX_BOXES:,} shapes")
        elif depth == 1:
            self.images.append(self._image)
            self._image = None
        self._text = []

    def close(self) -> None:
        """Take the end of the file."""

    def _end_of_head(self, tag: str, content: str) -> None:
        if self._tags[-1:] == ["label"] and tag in ("name", "type", "parent"):
            self._label[tag] = content
        elif tag == "label":
            name = text(self._label.get("name"))
            if name and "parent" not in self._label and self._label.get("type") not in _NO_BOXES:
                self._file.labels[name] = None
        elif tag == "subset" and len(self._tags) == 3:
            self._file.subset = text(content) or ""


def shape_box(shape: CvatShape) -> tuple[float, float, float, float] | None:
    """Return the box around a shape; None if shapes of its kind have none.

    Raises:
        ValueError: a value is missing or no number.

    Example:
        >>> from mdssd.data.cvat_xml import CvatShape, shape_box
        >>> shape_box(CvatShape("polygon", {"points": "1,2;5,2;4,9.5"}, {}))
        (1.0, 2.0, 5.0, 9.5)
    """
    values = shape.values
    if shape.kind == "box":
        x1, y1, x2, y2 = (_number(values, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        return _turned((x1, y1, x2, y2), values)
    if shape.kind == "ellipse":
        cx, cy, rx, ry = (_number(values, name) for name in ("cx", "cy", "rx", "ry"))
        return _turned((cx - rx, cy - ry, cx + rx, cy + ry), values, ellipse=True)
    if shape.kind == "mask":
        left, top, width, height = (
            _number(values, name) for name in ("left", "top", "width", "height")
        )
        return left, top, left + width, top + height
    if shape.kind == "polygon":
        points = values.get("points", "")
        pairs = [pair.split(",") for pair in points.split(";")]
        if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"points is {shown(points)}, expected x,y;x,y;x,y ...")
        xs, ys = ([_plain(pair[k], "points") for pair in pairs] for k in (0, 1))
        return box_around(xs, ys)
    if shape.kind == "cuboid":
        corners = [f"{corner}{side}" for side in (1, 2) for corner in ("tl", "tr", "bl", "br")]
        xs, ys = ([_number(values, axis + corner) for corner in corners] for axis in "xy")
        return box_around(xs, ys)
    return None


def _turned(
    box_xyxy: tuple[float, float, float, float], values: dict[str, str], ellipse: bool = False
) -> tuple[float, float, float, float]:
    """Return the upright box around a box, or an ellipse, that is turned around its centre."""
    angle = math.radians(_plain(values.get("rotation", "0"), "rotation"))
    x1, y1, x2, y2 = box_xyxy
    if not angle or not (x1 < x2 and y1 < y2):
        return box_xyxy
    if not math.isfinite(angle):
        raise ValueError(f"rotation is {shown(values['rotation'])}, expected degrees")
    width, height, cos, sin = x2 - x1, y2 - y1, abs(math.cos(angle)), abs(math.sin(angle))
    if ellipse:
        sides = math.hypot(width * cos, height * sin), math.hypot(width * sin, height * cos)
    else:
        sides = width * cos + height * sin, width * sin + height * cos
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    return cx - sides[0] / 2, cy - sides[1] / 2, cx + sides[0] / 2, cy + sides[1] / 2


def _number(values: dict[str, str], name: str) -> float:
    return _plain(values.get(name), name)


def _plain(value: str | None, name: str) -> float:
    result = number(value)
    if result is None:
        raise ValueError(f"{name} is {shown(value)}, expected a number")
    return result
