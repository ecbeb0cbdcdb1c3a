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
        note: a line, if EXIF turns the image, about what that was taken to mean. There is none if
            the user chose it and the stated size agrees.
    """

    size: tuple[int, int]
    upright: bool
    fault: str | None = None
    note: str | None = None


def place(
    header: ImageHeader,
    stated: tuple[float, float] | None,
    image: str,
    where: str,
    orientation: str = "auto",
    shown_upright: bool = True,
) -> Placement:
    """Compare the size and orientation of an image file with what its annotation states.

    The file decides the size. Where its EXIF orientation turns the image, the boxes refer to the
    turned image or to the pixels as they are stored. If that is a quarter turn, the stated size
    tells which. Where nothing can tell, the boxes refer to what the tools of the format show.

    Args:
        header: of the image file.
        stated: the (width, height) in the annotation; None if it states none.
        image: the name of the image, for messages.
        where: the annotation, for messages.
        orientation: "upright" or "stored" decides for all images; "auto" is the rule above.
        shown_upright: whether the tools of the format show the image turned.

    Example:
        >>> from mdssd.data.images import ImageHeader
        >>> from mdssd.data.sizes import place
        >>> place(ImageHeader(480, 640, 6, "JPEG"), (640, 480), "a.jpg", "a.xml")[:2]
        ((640, 480), True)
        >>> place(ImageHeader(480, 640, 6, "JPEG"), (480, 640), "a.jpg", "a.xml")[:2]
        ((480, 640), False)
        >>> place(ImageHeader(480, 640, 6, "JPEG"), None, "a.jpg", "a.xml", "stored")[:2]
        ((480, 640), False)
        >>> place(ImageHeader(480, 640, 1, "JPEG"), (80, 60), "a.jpg", "a.xml").fault
        'a.xml: states 80 x 60, the image (a.jpg) is 480 x 640'
    """
    stored, turned = header.size(upright=False), header.size(upright=True)
    is_stored, is_turned = stated == stored, stated == turned
    fault = None
    if stated is not None and not (is_stored or is_turned):
        shown = stored if orientation == "stored" else turned
        sizes = f"{stated[0]:g} x {stated[1]:g}, the image ({image}) is {shown[0]} x {shown[1]}"
        fault = f"{where}: states {sizes}"
    if header.orientation == 1:
        return Placement(stored, False, fault)
    start = f"{where}: the image ({image}) is stored as {stored[0]} x {stored[1]} and EXIF "
    text = start + _WHAT.get(header.orientation, "turns it by 90 degrees")
    if orientation != "auto":
        upright = orientation == "upright"
        note = None
        if (is_stored if upright else is_turned) and stored != turned:
            other = "stored" if upright else "turned"
            note = f"{text}; the stated size is that of the {other} image, but {orientation} "
            note += "was chosen for all"
        return Placement(turned if upright else stored, upright, fault, note)
    if is_stored and not is_turned:
        note = f"{text}; the stated size is that of the stored image; so not turned"
        return Placement(stored, False, fault, note)
    if is_turned and not is_stored:
        note = f"{start}turns it to the stated {turned[0]} x {turned[1]}; so turned"
        return Placement(turned, True, fault, note)
    taken = "do" if shown_upright else "do not"
    note = f"{text}; no stated size tells whether the boxes refer to that; taken as if they {taken}"
    return Placement(turned if shown_upright else stored, shown_upright, fault, note)
