"""Which pixels the boxes of an image refer to: its size and its EXIF orientation."""

from __future__ import annotations

from typing import NamedTuple

from mdssd.data.images import ImageHeader

_WHAT = {2: "mirrors it", 3: "turns it by 180 degrees", 4: "mirrors it"}


class Placement(NamedTuple):
    """How an image and its annotation go together.

    Attributes:
        size: (width, height) of the image that the boxes refer to.
        upright: whether that is the image turned as its EXIF orientation says.
        fault: a line, if the annotation states another size than the image's.
        note: a line, if the image is turned, or if it had to be guessed whether it is.
    """

    size: tuple[int, int]
    upright: bool
    fault: str | None = None
    note: str | None = None


def place(
    header: ImageHeader, stated: tuple[float, float] | None, image: str, where: str
) -> Placement:
    """Compare the size and orientation of an image file with what its annotation states.

    The file decides the size. If its EXIF orientation is a quarter turn, the stated size tells
    whether the boxes refer to the turned image. Where nothing can tell, they do, because
    annotation tools show images turned.

    Args:
        header: of the image file.
        stated: the (width, height) in the annotation; None if it states none.
        image: the name of the image, for messages.
        where: the annotation, for messages.

    Example:
        >>> from mdssd.data.images import ImageHeader
        >>> from mdssd.data.sizes import place
        >>> place(ImageHeader(480, 640, 6, "JPEG"), (640, 480), "a.jpg", "a.xml")[:2]
        ((640, 480), True)
        >>> place(ImageHeader(480, 640, 6, "JPEG"), (480, 640), "a.jpg", "a.xml")[:2]
        ((480, 640), False)
        >>> place(ImageHeader(480, 640, 1, "JPEG"), (80, 60), "a.jpg", "a.xml").fault
        'a.xml: states 80 x 60, a.jpg is 480 x 640'
    """
    stored, turned = header.size(upright=False), header.size(upright=True)
    is_stored, is_turned = stated == stored, stated == turned
    fault = None
    if stated is not None and not (is_stored or is_turned):
        sizes = f"{stated[0]:g} x {stated[1]:g}, {image} is {turned[0]} x {turned[1]}"
        fault = f"{where}: states {sizes}"
    if header.orientation == 1 or (is_stored and not is_turned):
        return Placement(stored, False, fault)
    text = f"{where}: {image} is stored as {stored[0]} x {stored[1]} and EXIF "
    if is_turned and not is_stored:
        note = f"{text}turns it to the stated {turned[0]} x {turned[1]}; so turned"
        return Placement(turned, True, fault, note)
    text += _WHAT.get(header.orientation, "turns it by 90 degrees")
    note = f"{text}; no stated size tells whether the boxes refer to that; taken as if they do"
    return Placement(turned, True, fault, note)
