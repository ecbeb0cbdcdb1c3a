"""Files that are written whole or not at all."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from mdssd.system import files
from mdssd.system.files import (
    TEMPORARY_SUFFIX,
    AtomicFiles,
    atomic_write,
    open_regular,
    read_regular,
    remove_all_leftovers,
    remove_leftovers,
)


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


def shown(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_many_files_appear_in_groups_and_whole(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    writer = AtomicFiles()
    writer.write(tmp_path / "first", b"1")
    assert shown(tmp_path) == ["first"]  # at once
    for number in range(63):
        writer.write(tmp_path / f"{number:02}", b"2")
    assert shown(tmp_path) == ["first"]
    remove_all_leftovers(tmp_path)  # as another run does: these are not left over
    writer.write(tmp_path / "63", b"2")
    assert len(shown(tmp_path)) == 65
    writer.write(tmp_path / "63", b"3")
    now[0] = 0.9
    writer.write(tmp_path / "64", b"3")
    assert (tmp_path / "63").read_bytes() == b"2" and len(shown(tmp_path)) == 65
    now[0] = 1.0
    writer.write(tmp_path / "65", b"3")
    assert (tmp_path / "63").read_bytes() == b"3" and len(shown(tmp_path)) == 67
    writer.write(tmp_path / "last", b"4")
    writer.write(tmp_path / "gone", b"4")
    writer.write(tmp_path / "63", b"4")
    for name in ("gone", "63", "64"):  # not yet there; a new one of an old one; there
        writer.remove(tmp_path / name)
    writer.flush()
    writer.flush()
    assert (tmp_path / "last").read_bytes() == b"4" and (tmp_path / "63").read_bytes() == b"3"
    assert len(list(tmp_path.iterdir())) == 67


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc for a name")
def test_a_file_of_a_group_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    writer = AtomicFiles()
    with pytest.raises(FileNotFoundError) as caught:
        writer.write(tmp_path / "missing" / "a", b"1")
    assert caught.value.filename == str(tmp_path / "missing" / "a")
    writer.write(tmp_path / "a", b"1")
    writer.write(tmp_path / "b", b"1")
    writer.write(tmp_path / "c", b"1")
    sync, place = os.fsync, str(tmp_path / ".c.")

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(place):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        writer.flush()
    assert caught.value.filename == str(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    writer.flush()


def test_leftovers_of_one_file_are_removed(tmp_path):
    for name in (".a.txt.7.mdssd.tmp", ".a.txt.88.mdssd.tmp", ".b.txt.7.mdssd.tmp", "a.txt"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.txt.7.mdssd.tmp", "a.txt"]


@pytest.mark.parametrize("long", ["x" * 255, "é" * 127], ids=["ascii", "utf-8"])
def test_a_name_of_255_bytes_can_be_written(tmp_path, long):
    with atomic_write(tmp_path / long) as file:
        file.write("whole")
        (temporary,) = tmp_path.iterdir()
        assert len(os.fsencode(temporary.name)) < 143
        kept = temporary.with_name(temporary.name + "2")
        os.link(temporary, kept)
    assert (tmp_path / long).read_text() == "whole"
    os.rename(kept, temporary)  # as if the process had been killed
    remove_leftovers(tmp_path / long)
    assert [path.name for path in tmp_path.iterdir()] == [long]


WRITE_AND_WAIT = """
import sys
from mdssd.system.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_all_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "a.jpg"
    mine = [tmp_path / name for name in (".b.jpg.7.tmp", "a.7.mdssd.tmp", ".b.mdssd.tmp")]
    for file in mine:
        file.write_text("mine")
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as writer:
        writer.stdout.readline()
        remove_all_leftovers(tmp_path)
        assert len(list(tmp_path.glob(f".*{TEMPORARY_SUFFIX}"))) == 2  # the writer still runs
        writer.send_signal(signal.SIGKILL)
    with atomic_write(tmp_path / "c.jpg"):
        remove_all_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "c.jpg"])
    remove_all_leftovers(tmp_path / "missing")


def test_a_full_disk_names_the_file(tmp_path):
    for inside, named in ((None, str(tmp_path / "a")), ("other", "other")):
        with pytest.raises(OSError, match="No space") as caught, atomic_write(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device", inside)
        assert caught.value.filename == named
    assert not list(tmp_path.iterdir())


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    kinds = {
        tmp_path / "pipe": "is a named pipe",
        tmp_path / "socket": "is a socket",
        tmp_path: "is a folder",
        "/dev/zero": "is a device",
    }
    for path, kind in kinds.items():
        for read in (open_regular, read_regular):
            with pytest.raises(OSError, match=kind) as caught:
                read(path)
            assert caught.value.strerror == f"{kind}, expected a regular file"
            assert caught.value.filename == path
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing")
    with pytest.raises(OSError, match="null byte"):
        read_regular("a\0b")


def test_a_link_to_a_file_is_read_whole_and_up_to_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link") == read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="has 5 bytes, expected at most 4 bytes") as caught:
        read_regular(tmp_path / "a", 4)
    assert caught.value.errno == errno.EFBIG
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(3_100_000_000)
    with pytest.raises(OSError, match="has 3.1 GB, expected at most 1 GB"):
        read_regular(tmp_path / "sparse", 10**9)
    if os.path.exists("/proc/self/status"):  # its size is stated as 0
        with pytest.raises(OSError, match="has 11 bytes, expected at most 10"):
            read_regular("/proc/self/status", 10)


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "folder") as file:
        file.write("a folder cannot be replaced")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
