"""Reading the text files of data sets: label files, lists and descriptions."""

from __future__ import annotations

from pathlib import Path

from mdssd.data.sample import MAX_BOXES, DataError
from mdssd.data.values import decode_text
from mdssd.system.files import read_regular

_MAX_LABELS = 8 << 20  # bytes


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file, in UTF-8 or in the encoding that its byte order mark states.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        DataError: it cannot be read, is too large, or is in another encoding.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mdssd.data.text_files import read_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("one", encoding="utf-16")
        ...     read_text(Path(folder, "a.txt"), 100)
        'one'
    """
    try:
        return decode_text(read_regular(path, limit))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def read_label_rows(path: Path) -> list[str]:
    """Return the lines of a file with a box in each line.

    Raises:
        DataError: it cannot be read, or has more than 20,000 lines.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mdssd.data.text_files import read_label_rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("0 0.5 0.5 0.1 0.1")
        ...     read_label_rows(Path(folder, "a.txt"))
        ['0 0.5 0.5 0.1 0.1']
    """
    lines = read_text(path, _MAX_LABELS).splitlines()
    if len(lines) > MAX_BOXES:
        raise DataError(
            f"{path}: has {len(lines):,} rows, expected at most {MAX_BOXES:,} for an image"
        )
    return lines
