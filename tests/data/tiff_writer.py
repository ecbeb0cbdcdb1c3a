"""Writes TIFF files of any size and kind, band by band, for tests."""

import struct
import zlib

import numpy as np

_TYPES = {"B": 1, "H": 3, "I": 4, "d": 12, "Q": 16}
# Zone 32 north of the UTM grid, whose middle is 9 degrees east; pixels of 2 m, from (500000, 0).
UTM = [
    (33550, "d", [2.0, 2.0, 0.0]),
    (33922, "d", [0.0, 0.0, 0.0, 500000.0, 0.0, 0.0]),
    (34735, "H", [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632]),
]


def write_tiff(
    path,
    size,
    part,
    *,
    tile=None,
    rows=16,
    big=True,
    channels=3,
    dtype=np.uint8,
    photometric=2,
    predictor=1,
    tags=(),
    pages=(),
):
    """Write a TIFF compressed by Deflate; equal blocks are stored once, so a blank one is small.

    Args:
        path: the file.
        size: (width, height).
        part: (x, y, width, height) -> the pixels of a block [height, width, channels], which may
            reach beyond the image, or None for a block of zeros.
        tile: side of the tiles; None writes strips of `rows` rows.
        big: whether it is a BigTIFF.
        tags: more (number, type, values), such as a georeference.
        pages: more (size, part), such as the levels of a pyramid.
    """
    with open(path, "wb") as file:
        word = "Q" if big else "I"
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else b"II*\0\0\0\0\0")
        link = 8 if big else 4
        for level, (each_size, each_part) in enumerate([(size, part), *pages]):
            width, height = each_size
            shape = (tile, tile) if tile else (width, rows)
            places, lengths, known = [], [], {}
            for y in range(0, height, shape[1]):
                for x in range(0, width, shape[0]):
                    own = shape if tile else (width, min(rows, height - y))
                    block = each_part(x, y, *own)
                    key = own if block is None else object()
                    if key not in known:
                        if block is None:
                            block = np.zeros((own[1], own[0], channels), dtype)
                        known[key] = (file.tell(), _compressed(file, block, predictor))
                    places.append(known[key][0])
                    lengths.append(known[key][1])
            entries = [
                (254, "I", [level > 0]),
                (256, "I", [width]),
                (257, "I", [height]),
                (258, "H", [np.dtype(dtype).itemsize * 8] * channels),
                (259, "H", [8]),
                (262, "H", [photometric]),
                (277, "H", [channels]),
                (317, "H", [predictor]),
                *([(322, "I", [tile]), (323, "I", [tile])] if tile else [(278, "I", [rows])]),
                (324 if tile else 273, word, places),
                (325 if tile else 279, word, lengths),
                *(tags if not level else ()),
            ]
            if channels in (2, 4):
                entries.append((338, "H", [2]))
            link = _directory(file, sorted(entries), big, word, link)


def _compressed(file, block, predictor):
    block = np.ascontiguousarray(block)
    if predictor == 2:
        block = np.concatenate((block[:, :1], np.diff(block, axis=1)), 1)
    return file.write(zlib.compress(block.tobytes(), 1))


def _directory(file, entries, big, word, link):
    """Write a directory, and its position at `link`. Return where that of the next belongs."""
    room = 8 if big else 4
    packed = []
    for number, kind, values in entries:
        data = struct.pack(f"<{len(values)}{kind}", *values)
        if len(data) > room:
            file.seek(file.tell() % 2, 1)
            place = file.tell()
            file.write(data)
            data = struct.pack(f"<{word}", place)
        packed.append(
            struct.pack(f"<HH{word}", number, _TYPES[kind], len(values)) + data.ljust(room, b"\0")
        )
    file.seek(file.tell() % 2, 1)
    start = file.tell()
    file.write(struct.pack("<Q" if big else "<H", len(packed)) + b"".join(packed))
    following = file.tell()
    file.write(bytes(room))
    file.seek(link)
    file.write(struct.pack(f"<{word}", start))
    file.seek(0, 2)
    return following
