"""Say what a file is by its first bytes, for messages about a file that is something else."""

from __future__ import annotations

import codecs
import os
import re

from mdssd.system.files import open_regular

# What a damaged file of the expected kind may be taken for.
VAGUE = ("unknown data", "an empty file", "only zero bytes")
_HEAD = 4096
# (position, bytes, kind): the file has these bytes at this position.
_MAGIC = (
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"GIF87a", "a GIF image"),
    (0, b"GIF89a", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a TIFF image"),
    (0, b"MM\0+", "a TIFF image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\x01\0", "an icon (ICO)"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (0, b"FLV\x01", "a video (FLV)"),
    (0, b"\0\0\x01\xba", "a video (MPEG)"),
    (0, b"%PDF-", "a PDF"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` gets the file)"),
)
# The same with a beginning so short that text may have it; text has no NUL.
_SHORT_MAGIC = {b"BM": "a BMP image", b"MZ": "a program (Windows)"}
# The brands of the ISO base media format, which HEIC, AVIF and MP4 share.
_BRANDS = {
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"hevc": "a HEIC image",
    b"heim": "a HEIC image",
    b"heis": "a HEIC image",
    b"mif1": "a HEIC image",
    b"msf1": "a HEIC image",
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"crx ": "a raw photograph (CR3)",
    b"qt  ": "a video (QuickTime)",
}
_RIFF = {
    b"WEBP": "a WebP image",
    b"AVI ": "a video (AVI)",
    b"WAVE": "a sound file (WAV)",
}


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """Say what a file is, by its content and not by its name.

    Args:
        path: the file. A folder and a file that cannot be read are described too.

    Returns:
        What it is, with its article: "a JPEG image", "a video (MP4)", "text", "unknown data".

    Example:
        >>> import tempfile
        >>> from mdssd.system.kinds import kind_of_file
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jpg") as file:
        ...     _ = file.write("<!DOCTYPE html><title>404</title>")
        ...     file.flush()
        ...     kind_of_file(file.name)
        'HTML'
    """
    try:
        with open_regular(path) as file:
            return kind_of_bytes(file.read(_HEAD))
    except IsADirectoryError:
        return "a folder"
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"


def kind_of_bytes(data: bytes) -> str:
    """Say what data are by their first bytes, of which 4,096 are enough; see `kind_of_file`.

    Example:
        >>> from mdssd.system.kinds import kind_of_bytes
        >>> kind_of_bytes(b"GIF89a..."), kind_of_bytes(b""), kind_of_bytes(bytes(9))
        ('a GIF image', 'an empty file', 'only zero bytes')
    """
    head = data[:_HEAD]
    if not head:
        return "an empty file"
    for start, magic, kind in _MAGIC:
        if head.startswith(magic, start):
            return kind
    if b"\0" in head and head[:2] in _SHORT_MAGIC:
        return _SHORT_MAGIC[head[:2]]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video (MP4)")
    if head[4:8] in (b"moov", b"mdat"):
        return "a video (QuickTime)"
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], "a RIFF file")
    if head[:4] == b"PK\x03\x04":
        return _kind_of_zip(head)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "a safetensors file"
    if head[0] == 0x80 and head[1:2] and head[1] in (2, 3, 4, 5):
        return "a PyTorch pickle" if b"torch" in head or _is_old_torch(head) else "a pickle"
    if not head.strip(b"\0"):
        return "only zero bytes"
    return _kind_of_text(head)


def _is_old_torch(head: bytes) -> bool:
    """Whether the pickle begins with the number that torch.save wrote before it made archives."""
    return 0x1950A86A20F9469CFC6C.to_bytes(10, "little") in head[:32]


def _kind_of_zip(head: bytes) -> str:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.endswith((b"/data.pkl", b"/version", b"/byteorder", b"/.format_version")):
        return "a PyTorch pickle"
    if name in (b"[Content_Types].xml", b"mimetype"):
        return "an office document"
    return "a ZIP archive"


def _kind_of_text(head: bytes) -> str:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:  # an incremental decoder, because the last character may be cut off
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return "unknown data"
    if "\0" in text:
        return "unknown data"
    start = text.lstrip("\ufeff \t\r\n")[:200].lower()
    if re.match(r"<(!doctype html|html|head|body)", start):
        return "HTML"
    if "<svg" in start:
        return "an SVG drawing"
    if start.startswith("<?xml") or re.match(r"<annotation\b", start):
        return "XML"
    return "JSON" if start[:1] in ("{", "[") else "text"
