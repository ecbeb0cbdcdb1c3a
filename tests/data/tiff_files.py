"""Writes TIFF files of the kinds that cameras, scanners and microscopes write."""

import struct
import zlib

import numpy as np

_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(
    *pages,
    order="<",
    big=False,
    tile=None,
    planar=False,
    deflate=False,
    photometric=None,
    extra=None,
    orientation=None,
    rows=None,
    bits=None,
):
    """Return the bytes of a TIFF file.

    Args:
        pages: arrays [H, W] or [H, W, C] of whole or floating-point numbers.
        order: "<" (Intel) or ">" (Motorola).
        big: BigTIFF, whose offsets have 64 bits.
        tile: side of the tiles, a multiple of 16; None writes strips.
        planar: each channel by itself.
        deflate: compressed.
        photometric: 0 white is zero, 1 black is zero, 2 RGB ...; None: 1 or 2.
        extra: what the channels after the third are, 0 unknown, 2 alpha; None does not say.
        orientation: as in EXIF.
        rows: rows of a strip; None: all.
        bits: the stated number of bits, for one-bit rows that are packed already.
    """
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(
        f"{order}HHHQ" if big else f"{order}HI", *((43, 8, 0, 16) if big else (42, 8))
    )
    data = bytearray(mark + head)
    entry, word = (20, "Q") if big else (12, "I")
    for number, page in enumerate(pages):
        pixels = page if page.ndim == 3 else page[..., None]
        height, width, channels = pixels.shape
        width = width * (8 // bits) if bits else width
        planes = np.moveaxis(pixels, 2, 0)[..., None] if planar else pixels[None]
        tile_rows = tile or rows or height
        blocks = []
        for plane in planes:
            for top in range(0, height, tile_rows):
                for left in range(0, pixels.shape[1], tile or pixels.shape[1]):
                    part = plane[top : top + tile_rows, left : left + (tile or pixels.shape[1])]
                    if tile:
                        gaps = [(0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)]
                        part = np.pad(part, gaps)
                    raw = part.astype(part.dtype.newbyteorder(order)).tobytes()
                    blocks.append(zlib.compress(raw) if deflate else raw)
        tags = {
            256: (4, [width]),
            257: (4, [height]),
            258: (3, [bits or pixels.dtype.itemsize * 8] * channels),
            259: (3, [8 if deflate else 1]),
            262: (3, [(2 if channels >= 3 else 1) if photometric is None else photometric]),
            277: (3, [channels]),
            284: (3, [2 if planar else 1]),
            339: (3, [_FORMATS[pixels.dtype.kind]] * channels),
        }
        if orientation:
            tags[274] = (3, [orientation])
        if extra is not None:
            tags[338] = (3, [extra] * (channels - (3 if channels >= 3 else 1)))
        if tile:
            tags |= {322: (4, [tile]), 323: (4, [tile])}
        else:
            tags[278] = (4, [tile_rows])
        places, counts = (324, 325) if tile else (273, 279)
        after = len(data) + (8 + 8 if big else 2 + 4) + entry * (len(tags) + 2)
        values = bytearray()
        sizes = [len(block) for block in blocks]
        wide = 16 if big else 4
        tags[counts] = (wide, sizes)
        # The long lists lie behind the directory, and the pixels behind those.
        room = sum(
            len(v) * struct.calcsize(_TYPES[t])
            for t, v in (*tags.values(), (wide, sizes))
            if len(v) * struct.calcsize(_TYPES[t]) > (8 if big else 4)
        )
        starts = [after + room + sum(sizes[:k]) for k in range(len(sizes))]
        tags[places] = (wide, starts)
        directory = bytearray(struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)))
        for tag in sorted(tags):
            kind, content = tags[tag]
            packed = struct.pack(f"{order}{len(content)}{_TYPES[kind]}", *content)
            directory += struct.pack(f"{order}HH{word}", tag, kind, len(content))
            if len(packed) <= (8 if big else 4):
                directory += packed.ljust(8 if big else 4, b"\0")
            else:
                directory += struct.pack(f"{order}{word}", after + len(values))
                values += packed
        following = starts[-1] + sizes[-1]
        last = number == len(pages) - 1
        directory += struct.pack(f"{order}{word}", 0 if last else following)
        data += directory + values + b"".join(blocks)
    return bytes(data)
