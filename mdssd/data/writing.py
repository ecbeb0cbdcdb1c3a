"""What the writers of all formats share: a folder that appears whole, and its images."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdssd.data.dataset import DetectionDataset
from mdssd.data.image_headers import ImageHeader, parse_header
from mdssd.data.images import read_header
from mdssd.data.output_names import OutputImage
from mdssd.data.reasons import Losses
from mdssd.data.sample import Sample
from mdssd.drawing import encode_image
from mdssd.system.files import lock_file

# Holds what is being written, in the folder itself: the folder above may be on another disk.
_WORK = ".mdssd-convert.tmp"
# The endings that are kept; other files get that of their format.
_KEPT = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".gif", ".avif", ".jp2", ".ppm", ".pgm", ".pbm"),
)
_ENDINGS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "BMP": ".bmp",
    "DIB": ".bmp",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "PPM": ".ppm",
}


class Written(NamedTuple):
    """An image that was written, and its boxes.

    Attributes:
        suffix: the ending of the file.
        format: the format of the file, by Pillow's name.
        size: (width, height) of the picture, turned as its EXIF data say.
        boxes_xyxy: float64 [M, 4], in pixels of that picture.
        done: how the file was made: "copied", "linked" or "encoded".
        sample: the labels and flags of the boxes. Its own boxes may refer to the stored pixels.
    """

    suffix: str
    format: str
    size: tuple[int, int]
    boxes_xyxy: NDArray[np.float64]
    done: str
    sample: Sample


@contextmanager
def new_folder(folder: str | os.PathLike[str], last: Sequence[str]) -> Iterator[Path]:
    """Make a folder whose contents appear when the block ends without an error.

    They are written into a hidden folder in it. A killed program leaves only that, and the next
    call removes it.

    Args:
        folder: the folder. It must not exist, or be empty.
        last: the names of the entries that readers recognise the data set by, which appear last.

    Yields:
        The folder to write into.

    Raises:
        FileExistsError: the folder is not empty, or is a file, or another program writes it.
        OSError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or set(os.listdir(folder)) - {_WORK}):
        raise FileExistsError(
            f"{folder}: exists and is not an empty folder; choose another, or empty it"
        )
    made = not folder.exists()
    work = folder / _WORK
    moved: list[Path] = []
    try:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            if not lock_file(lock):
                made = False
                raise FileExistsError(f"{folder}: another program is writing a data set there")
            content = work / "content"
            try:
                shutil.rmtree(content, ignore_errors=True)
                content.mkdir()
                yield content
                for name in sorted(os.listdir(content), key=lambda name: (name in last, name)):
                    os.rename(content / name, folder / name)
                    moved.append(folder / name)
            except BaseException:
                for path in moved:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename, error.filename2 = os.fspath(folder), None
        raise
    finally:
        if made and not moved:
            with suppress(OSError):
                folder.rmdir()


def write_image(
    dataset: DetectionDataset,
    image: OutputImage,
    folders: Sequence[Path],
    losses: Losses,
    *,
    link: bool = False,
    jpg: bool = False,
) -> Written:
    """Write an image into folders, and return its boxes in the picture turned upright.

    The bytes of the file are copied. Only an image that has none is encoded, as PNG.

    Args:
        dataset: the data set.
        image: the image.
        folders: where to write it.
        losses: counts the images whose boxes had to be turned.
        link: whether to make symbolic links to the data set's files instead.
        jpg: whether the file of a JPEG must end with .jpg.

    Raises:
        DataError: the image cannot be read.
    """
    path = dataset.image_path(image.number)
    done = "linked" if link and path else "copied"
    data = None if path else dataset.image_bytes(image.number)
    if path is None and data is None:
        sample = dataset[image.number]
        height, width = sample.image.shape[:2]
        header = ImageHeader(width, height, 1, "PNG")
        data, done = encode_image(sample.image), "encoded"
    else:
        sample = dataset.annotation(image.number)
        name = dataset.image_ids[image.number]
        header = read_header(path) if path else parse_header(io.BytesIO(data or b""), name)
    suffix = path.suffix if path else ""
    if suffix.lower() not in _KEPT or (jpg and header.format == "JPEG"):
        suffix = _ENDINGS.get(header.format, suffix)
    for folder in folders:
        target = folder / f"{image.name}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if path is None:
            target.write_bytes(data or b"")
        elif link:
            target.symlink_to(os.path.abspath(path))
        else:
            shutil.copyfile(path, target)
    boxes_xyxy = sample.boxes_xyxy.astype(np.float64)
    if header.orientation != 1 and not dataset.upright(image.number):
        boxes_xyxy = _turned(boxes_xyxy, header)
        what = "that EXIF data turn, with boxes on the stored pixels"
        losses.add("image", what, f"in {image.name}", "the boxes are turned with the picture")
    return Written(suffix, header.format, header.size(upright=True), boxes_xyxy, done, sample)


def masks(sample: Sample) -> int:
    """Return how many boxes state another area than their own, as COCO does for masks.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.writing import masks
        >>> masks(SyntheticScenes(1)[0])
        0
    """
    boxes = np.prod(sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2], axis=1)
    return int((~np.isclose(sample.area, boxes, rtol=1e-3)).sum())


def _turned(boxes_xyxy: NDArray[np.float64], header: ImageHeader) -> NDArray[np.float64]:
    """Return boxes on the stored pixels as they are in the picture turned upright."""
    x1, y1, x2, y2 = boxes_xyxy.T
    width, height = header.width, header.height
    turn = header.orientation
    if turn >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
        width, height = height, width
    if turn in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if turn in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)
