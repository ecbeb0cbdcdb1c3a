"""Images as the bytes of JPEG and PNG files."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mdssd.system.files import atomic_write


def encode_image(
    image: NDArray[np.uint8], suffix: str = ".png", *, quality: int = 93, fine: bool = True
) -> bytes:
    """Return an image as the bytes of an image file.

    Args:
        image: uint8 [H, W, 3] RGB.
        suffix: the file's format, such as ".png" or ".jpg".
        quality: of a JPEG, 0 to 100.
        fine: whether a JPEG keeps the colours at full resolution. Thin coloured lines and letters
            blur without it.

    Raises:
        ValueError: OpenCV cannot encode the image, for example because it is empty.

    Example:
        >>> import numpy as np
        >>> from mdssd.drawing import encode_image
        >>> encode_image(np.zeros((4, 6, 3), np.uint8))[1:4]
        b'PNG'
    """
    options = []
    if suffix == ".jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        if fine:
            full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    except cv2.error as error:
        raise ValueError(f"encode_image: {image.dtype} {list(image.shape)}: {error}") from None
    if not done:
        raise ValueError(f"encode_image: {image.dtype} {list(image.shape)}: cannot be {suffix}")
    return data.tobytes()


def write_image(image: NDArray[np.uint8], path: str | os.PathLike[str]) -> None:
    """Write uint8 [H, W, 3] RGB as a file; its name's suffix decides the format.

    The file is replaced at once or not at all; the folder is created if it is missing.

    Raises:
        ValueError: the image cannot be encoded.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from mdssd.drawing import write_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_image(np.zeros((4, 6, 3), np.uint8), f"{folder}/black.png")
    """
    data = encode_image(image, Path(path).suffix)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(data)
