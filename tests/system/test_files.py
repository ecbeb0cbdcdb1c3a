"""Files that are written whole or not at all."""

import pytest

from mdssd.system.files import atomic_write, remove_leftovers


def test_atomic_write(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write("één\n")
        assert not path.exists()
    assert path.read_bytes() == "één\n".encode()
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "één\n".encode()
    with pytest.raises(ValueError, match="expected 'w' or 'wb', got 'a'"), atomic_write(path, "a"):
        pass
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "no" / "a"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_leftovers_of_one_file_are_removed(tmp_path):
    for name in (".a.txt.7.tmp", ".a.txt.88.tmp", ".b.txt.7.tmp", "a.txt"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.txt.7.tmp", "a.txt"]
