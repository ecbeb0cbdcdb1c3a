"""The index of a folder's files."""

import errno
import os

import pytest

from mdssd.data import DataError, open_dataset
from mdssd.data.file_index import FileIndex


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Without its labels, images would become background."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.txt").touch()
    closed = tmp_path / "val"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = f"{closed}: the folder cannot be read .Permission denied."
    with pytest.raises(DataError, match=message):
        FileIndex(tmp_path, (".txt",))
    assert FileIndex(tmp_path / "train", (".txt",)).all_names == ["a.txt"]
    # What lies in it may be what the data set is recognised by, as LabelMe's files.
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_a_folder_that_is_missing_is_empty(tmp_path):
    assert FileIndex(tmp_path / "none", (".txt",)).all_names == []
