"""Image files of the kinds that cameras, scanners and editors write, with the pixels they show."""

import io

import cv2
import numpy as np
from PIL import Image, features
from tiff_files import tiff

HEIGHT, WIDTH = 96, 128
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([_X * 2, 250 - _Y * 2, _X + _Y], 2).astype(np.uint8)
GREY = (_X + _Y + 32).astype(np.uint8)
SMOOTH = RGB.copy()  # for JPEG, which blurs a single pixel
RGB[0, 0] = GREY[0, 0] = 255  # so that pixels of 16 bits use all of them
MASK = np.where((_X // 16 + _Y // 16) % 2, 255, 0).astype(np.uint8)


def deep(levels, bits=16):
    """Return 8-bit levels as numbers of 16 bits, of which `bits` are used."""
    return levels.astype(np.uint16) << (bits - 8) | levels >> (16 - bits)


def fractions(levels):
    return (levels / 255).astype(np.float32)


def written(image, form, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, form, **options
    )
    return file.getvalue()


def png(pixels):
    """Return a PNG of grey, RGB or RGBA, also of 16 bits."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return cv2.imencode(".png", pixels)[1].tobytes()


def animated(image, form, **options):
    """Return a file of two frames."""
    second = Image.fromarray(255 - np.asarray(image.convert("RGB")))
    return written(image, form, save_all=True, append_images=[second], **options)


def ycck():
    """A JPEG in YCCK, which Photoshop writes: a CMYK one whose Adobe marker says so."""
    data = bytearray(written(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


# (suffix, bytes, pixels as shown or None if only the roads are compared), by name.
KINDS = {}


def add_kind(name, suffix, data, shown):
    KINDS[name] = (suffix, data, shown)


def _add_all():
    palette = Image.fromarray(RGB).quantize(64)
    shown = np.asarray(palette.convert("RGB"))
    cmyk = Image.fromarray(RGB).convert("CMYK")
    rgba, near_infrared = np.dstack([RGB, MASK]), np.dstack([RGB, 255 - GREY])
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(MASK)])
    one_bit, threshold = Image.fromarray(GREY > 120), np.where(GREY > 120, 255, 0).astype(np.uint8)
    packed = np.packbits(GREY <= 120, axis=1)
    alphas = bytes(range(0, 256, 4))
    image = Image.fromarray(RGB)

    add_kind("png grey", ".png", written(GREY, "PNG"), GREY)
    add_kind("png grey and alpha", ".png", written(grey_alpha, "PNG"), GREY)
    add_kind("png grey, a level transparent", ".png", written(GREY, "PNG", transparency=7), GREY)
    add_kind("png palette", ".png", written(palette, "PNG"), shown)
    add_kind("png palette, alphas", ".png", written(palette, "PNG", transparency=alphas), shown)
    add_kind(
        "png palette, a colour transparent", ".png", written(palette, "PNG", transparency=3), shown
    )
    add_kind("png rgb", ".png", written(RGB, "PNG"), RGB)
    add_kind(
        "png rgb, a colour transparent", ".png", written(RGB, "PNG", transparency=(9, 9, 9)), RGB
    )
    add_kind("png rgba", ".png", written(rgba, "PNG"), RGB)
    add_kind("png 1 bit", ".png", written(one_bit, "PNG"), threshold)
    add_kind("png grey 16", ".png", png(deep(GREY)), GREY)
    add_kind("png grey 12 in 16", ".png", png(deep(GREY, 12)), GREY)
    add_kind("png rgb 16", ".png", png(deep(RGB)), RGB)
    add_kind("png rgba 16", ".png", png(deep(rgba)), RGB)
    add_kind("png rgb 12 in 16", ".png", png(deep(RGB, 12)), RGB)
    add_kind("png of 2 frames", ".png", animated(image, "PNG"), RGB)

    rare = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x121111]
    add_kind("jpeg", ".jpg", written(SMOOTH, "JPEG", quality=95), None)
    add_kind("jpeg grey", ".jpg", written(SMOOTH[..., 0], "JPEG", quality=95), None)
    add_kind("jpeg progressive", ".jpg", written(SMOOTH, "JPEG", progressive=True), None)
    add_kind("jpeg 4:4:0", ".jpg", cv2.imencode(".jpg", SMOOTH[..., ::-1], rare)[1].tobytes(), None)
    add_kind(
        "jpeg cmyk",
        ".jpg",
        written(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
        None,
    )
    add_kind("jpeg ycck", ".jpg", ycck(), None)

    numbers = deep(GREY, 10).astype(">u2").tobytes()
    add_kind("gif", ".gif", written(palette, "GIF"), shown)
    add_kind("gif, a colour transparent", ".gif", written(palette, "GIF", transparency=3), None)
    add_kind("gif of 2 frames", ".gif", animated(palette, "GIF"), shown)
    add_kind("bmp", ".bmp", written(RGB, "BMP"), RGB)
    add_kind("bmp palette", ".bmp", written(palette, "BMP"), shown)
    add_kind("bmp 32 bits a pixel", ".bmp", written(rgba, "BMP"), RGB)
    add_kind("webp", ".webp", written(RGB, "WEBP", lossless=True), RGB)
    add_kind("webp rgba", ".webp", written(rgba, "WEBP", lossless=True, exact=True), RGB)
    add_kind("webp of 2 frames", ".webp", animated(image, "WEBP", lossless=True), RGB)
    add_kind("ppm", ".ppm", written(RGB, "PPM"), RGB)
    add_kind("pbm", ".pbm", written(one_bit, "PPM"), threshold)
    add_kind("pgm 10 in 16", ".pgm", b"P5 %d %d 1023\n" % (WIDTH, HEIGHT) + numbers, GREY)

    add_kind("tiff palette", ".tif", written(palette, "TIFF"), shown)
    add_kind("tiff cmyk", ".tif", written(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB")))
    add_kind("tiff lab", ".tif", written(image.convert("LAB"), "TIFF"), None)
    add_kind("tiff 1 bit", ".tif", written(one_bit, "TIFF", compression="group4"), threshold)
    add_kind("tiff 1 bit, white is 0", ".tif", tiff(packed, bits=1, photometric=0), threshold)
    add_kind("tiff lzw", ".tif", written(RGB, "TIFF", compression="tiff_lzw"), RGB)
    add_kind("tiff packbits", ".tif", written(RGB, "TIFF", compression="packbits"), RGB)
    add_kind("tiff jpeg", ".tif", written(RGB, "TIFF", compression="jpeg"), None)
    add_kind("tiff deflate tiles", ".tif", tiff(RGB, tile=32, deflate=True), RGB)
    add_kind("tiff strips, big-endian", ".tif", tiff(RGB, rows=7, order=">"), RGB)
    add_kind("tiff planes", ".tif", tiff(RGB, planar=True), RGB)
    add_kind("tiff rgba", ".tif", tiff(rgba, extra=2), RGB)
    add_kind("tiff infrared", ".tif", tiff(near_infrared, extra=0), RGB)
    add_kind("tiff infrared planes", ".tif", tiff(near_infrared, extra=0, planar=True), RGB)
    add_kind("tiff grey, white is 0", ".tif", tiff(255 - GREY, photometric=0), GREY)
    add_kind("tiff of 3 pages", ".tif", tiff(RGB, 255 - RGB, GREY), RGB)
    add_kind("bigtiff", ".tif", tiff(RGB, big=True), RGB)


def _add_deep_tiffs():
    rgba, near_infrared = np.dstack([RGB, MASK]), np.dstack([RGB, 255 - GREY])
    inverted = 65535 - deep(GREY)
    tiles = {"order": ">", "tile": 32}
    strips = {"order": ">", "rows": 5, "deflate": True}
    add_kind("tiff grey 16", ".tif", tiff(deep(GREY)), GREY)
    add_kind("tiff grey 16, big-endian tiles", ".tif", tiff(deep(GREY), **tiles), GREY)
    add_kind("tiff grey 16, white is 0", ".tif", tiff(inverted, photometric=0), GREY)
    add_kind("tiff grey 12 in 16", ".tif", tiff(deep(GREY, 12)), GREY)
    add_kind("tiff grey 16 in 32", ".tif", tiff(deep(GREY).astype(np.uint32)), GREY)
    add_kind("tiff rgb 16", ".tif", tiff(deep(RGB)), RGB)
    add_kind("tiff rgb 16, big-endian strips", ".tif", tiff(deep(RGB), **strips), RGB)
    add_kind("tiff rgb 12 in 16", ".tif", tiff(deep(RGB, 12), tile=32), RGB)
    add_kind("tiff rgba 16", ".tif", tiff(deep(rgba), extra=2), RGB)
    add_kind("tiff infrared 16", ".tif", tiff(deep(near_infrared), extra=0), RGB)
    add_kind("tiff 16 of 2 pages", ".tif", tiff(deep(GREY), deep(255 - GREY)), GREY)
    add_kind("tiff float", ".tif", tiff(fractions(GREY)), GREY)
    add_kind("tiff float of 64 bits", ".tif", tiff(GREY / 255), GREY)
    add_kind("tiff float rgb", ".tif", tiff(fractions(RGB)), RGB)
    add_kind("bigtiff rgb 16", ".tif", tiff(deep(RGB), big=True), RGB)
    add_kind("bigtiff grey 16, big-endian", ".tif", tiff(deep(GREY), big=True, order=">"), GREY)


def _add_what_this_pillow_writes():
    if features.check("avif"):
        add_kind("avif", ".avif", written(RGB, "AVIF"), None)
        add_kind("avif rgba", ".avif", written(np.dstack([RGB, MASK]), "AVIF"), None)
    if features.check("jpg_2000"):
        add_kind("jpeg 2000", ".jp2", written(RGB, "JPEG2000"), RGB)
        add_kind("jpeg 2000 grey 16", ".jp2", written(deep(GREY), "JPEG2000"), GREY)


_add_all()
_add_deep_tiffs()
_add_what_this_pillow_writes()
# What Pillow's own image of a file does not hold: it cannot open these,
NOT_IN_PILLOW = (
    "tiff infrared planes",
    "tiff float of 64 bits",
    "tiff float rgb",
    "bigtiff grey 16, big-endian",
)
# and of colours of 16 bits it keeps the upper 8, so that those which use fewer bits are dark.
DARK_IN_PILLOW = ("png rgb 12 in 16", "tiff rgb 12 in 16")
