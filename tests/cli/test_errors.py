"""What a user reads when a command fails: exact messages, and no traceback for anything."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from mdssd.cli import main, make_parser
from mdssd.cli.commands import info
from mdssd.cli.errors import describe
from mdssd.data import DataError

LESS = "fewer --workers or a smaller --batch-size"
SHM = (
    f"shared memory (/dev/shm) is full; use {LESS}, or give a container more with docker run "
    "--shm-size=2g"
)
KILLED = (
    f"a process that loads images was killed, most likely for lack of memory; use {LESS}, and "
    "continue a training run with --resume"
)
MEMORY = f"the memory of this machine is not enough; use {LESS}, in training also --accumulate"
GPU = (
    "the memory of the GPU is not enough; use a smaller --batch-size, in training also "
    "--accumulate or --amp bf16"
)
FILES = "too many open files; raise the limit with `ulimit -n 4096`, or use fewer --workers"


def numpy_memory_error():
    try:
        np.empty(2**62, np.uint8)
    except MemoryError as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.json: bad\n  in two lines"), "a.json: bad in two lines"),
        (ValueError(), "ValueError"),
        (ValueError("/dev/shm/a: Too many open files is my name"),
         "/dev/shm/a: Too many open files is my name"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
         "a: No such file or directory"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"),
         "a -> b: Invalid cross-device link"),
        (OSError(errno.ENOSPC, "No space left on device", "out/a.json"),
         "out/a.json: cannot be written, the disk is full (No space left on device)"),
        (OSError(errno.ENOSPC, "No space left on device"),
         "cannot be written, the disk is full (No space left on device)"),
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), f"a.jpg: {FILES}"),
        (RuntimeError("received 0 items of ancdata"), FILES),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), KILLED),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), KILLED),
        (BrokenProcessPool("A process in the process pool was terminated abruptly"), KILLED),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
                      "that dataloader's workers are out of shared memory."), SHM),
        (RuntimeError("unable to write to file </torch_12_34_5>: No space left on device (28)"),
         SHM),
        (RuntimeError("unable to mmap 64 bytes from file </torch_1>: Cannot allocate memory (12)"),
         SHM),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), GPU),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), GPU),
        (MemoryError(), MEMORY),
        (numpy_memory_error(), MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
                      "allocate memory: you tried to allocate 99 bytes."), MEMORY),
        (RecursionError("maximum recursion depth exceeded"), "the input is nested too deeply"),
        (RuntimeError("can't start new thread"),
         "the system allows no more threads or processes; use fewer --workers and --threads"),
        (KeyError("x"), "unexpected KeyError: 'x' (a bug in mdssd; --traceback shows where)"),
        (OverflowError("int too large to convert to float"), "unexpected OverflowError: int too "
         "large to convert to float (a bug in mdssd; --traceback shows where)"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "unexpected UnicodeEncodeError: 'ascii' "
         "codec can't encode character '\\xe9' in position 0: no "
         "(a bug in mdssd; --traceback shows where)"),
    ],
)  # fmt: skip
def test_messages(error, line):
    assert describe(error) == line


class Failing:
    """A data set whose images fail in the loader's worker."""

    def __init__(self, failure):
        self.failure = failure

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (DataError("a.jpg: the image is truncated"), "a.jpg: the image is truncated"),
        (DataError("two\nlines: ValueError: x"), "two lines: ValueError: x"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), SHM),
        (MemoryError(), MEMORY),
    ],
    ids=["data", "lines", "shm", "memory"],
)
def test_an_error_in_a_worker_is_said_as_if_there_were_no_worker(failure, line):
    with pytest.raises(Exception, match="Caught") as caught:
        next(iter(DataLoader(Failing(failure), num_workers=1)))
    assert describe(caught.value) == line


def failing(monkeypatch, failure):
    """Let `mdssd info` fail with this exception."""

    def run(arguments):
        raise failure

    monkeypatch.setattr(info, "run", run)


@pytest.mark.parametrize("failure", [KeyError("x"), RecursionError(), MemoryError()])
def test_no_exception_ends_in_a_traceback(monkeypatch, capsys, failure):
    failing(monkeypatch, failure)
    assert main(["info"]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("mdssd: error: ") and err.count("\n") == 1


def test_what_fails_as_it_is_thrown_away_is_not_printed(monkeypatch, capsys):
    class Broken:
        def __del__(self):
            raise AttributeError("half made")

    def run(arguments):
        broken = Broken()
        raise ValueError(f"the message, not {type(broken).__name__}")

    monkeypatch.setattr(info, "run", run)
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "mdssd: error: the message, not Broken\n"
    assert not printed and sys.unraisablehook == printed.append


def test_warnings_are_lines_of_the_command(monkeypatch, capsys):
    def run(arguments):
        warning = RuntimeWarning("the native module\ndoes not load")
        print(warnings.formatwarning(warning, RuntimeWarning, "a.py", 1, "code"), end="")
        return 0

    monkeypatch.setattr(info, "run", run)
    before = warnings.formatwarning
    assert main(["info"]) == 0
    assert capsys.readouterr().out == "mdssd: warning: the native module does not load\n"
    assert warnings.formatwarning is before


# --- standard streams ----------------------------------------------------------------------------

# Prints names that no encoding and no reader may like, then exits with status 5.
PRINTING = """
import sys
from mdssd.cli import main, make_parser
from mdssd.cli.commands import info

def run(arguments):
    for number in range(20000):
        print(f"{number}: caf\\udce9 \\u00e9 \\u4e2d")
    return 5

info.run = run
sys.exit(main(["info"]))
"""


def shell(line, **environment):
    """Run a line of a shell in which $MDSSD prints 20,000 lines; return status, output, errors."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env={**os.environ, "PROGRAM": PRINTING, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    return done.returncode, done.stdout, done.stderr


RUN = '"$PYTHON" -c "$PROGRAM"'


def test_a_reader_that_ends_early_ends_the_command_without_a_word():
    assert shell(f"{RUN} | head -1") == (141, "0: caf\\udce9 é 中\n", "")
    assert shell(f"{RUN} --help 2>&1 | true")[1:] == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_named():
    assert shell(f"{RUN} > /dev/full") == (
        2,
        "",
        "mdssd: error: standard output cannot be written (No space left on device)\n",
    )


def test_characters_that_the_output_lacks_are_escaped():
    status, out, err = shell(RUN, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (status, err) == (5, "")
    assert out.splitlines()[0] == "0: caf\\udce9 \\xe9 \\u4e2d"


def test_closed_streams():
    assert shell(f"{RUN} >&-") == (5, "", "")
    assert shell(f"{RUN} <&- | tail -1", PYTHONIOENCODING="ascii") == (
        5,
        "19999: caf\\udce9 \\xe9 \\u4e2d\n",
        "",
    )


def test_a_closed_error_stream_is_not_replaced_by_a_file(tmp_path):
    program = """
import os, sys
from mdssd.cli import main, make_parser
from mdssd.cli.commands import info

def run(arguments):
    with open("written", "w") as file:
        os.write(2, b"what a library prints")
    raise ValueError("said to nobody")

info.run = run
sys.exit(main(["info"]))
"""
    assert shell(f'cd {tmp_path}; "$PYTHON" -c "$PROGRAM" 2>&-', PROGRAM=program) == (2, "", "")
    assert (tmp_path / "written").read_text() == ""


# --- any argument --------------------------------------------------------------------------------

ODD = ["", " ", "-", "--", "0", "-1", "nan", "inf", "1e999", "9" * 5000, "²", "none", "\udce9",
       "a\0b", "x" * 300, "/dev/null", "/proc/self/mem/x", "~", "a,b", ",", "%s", "{}"]  # fmt: skip


def leaves(parser, words=()):
    """The parsers that have no subcommands, with the words that lead to them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from leaves(sub, (*words, word))
            return
    yield words, parser


@pytest.mark.parametrize(("words", "parser"), list(leaves(make_parser())), ids=str)
def test_an_odd_argument_is_taken_or_refused_in_one_line(monkeypatch, capsys, words, parser):
    root = make_parser()  # making it takes longer than parsing
    monkeypatch.setattr("mdssd.cli.make_parser", lambda: root)
    monkeypatch.setattr("mdssd.cli.import_module", lambda name: SimpleNamespace(run=lambda a: 0))
    needed = ["a", "b"] if words == ("detect",) else ["a"] if words != ("train",) else []
    needed += ["--data", "a"] if words in (("train",), ("eval",), ("quantize",)) else []
    out = (("convert",), ("export",), ("quantize",), ("data", "show"))
    needed += ["--out", "a"] if words in out else []
    needed += ["--to", "yolo", "--out", "a"] if words == ("data", "convert") else []
    needed = needed if words != ("info",) else []
    assert main([*words, *needed]) == 0
    options = [action.option_strings[0] for action in parser._actions if action.option_strings]
    for option in [*options, ""]:
        for value in ODD:
            arguments = [*words, *needed, *([f"{option}={value}"] if option else [value])]
            status = main(arguments)
            _, err = capsys.readouterr()
            assert status in (0, 2), arguments
            if status:
                assert err.startswith("mdssd: error: ") and err.count("\n") == 1, arguments
                assert "a bug in mdssd" not in err and len(err) < 2100, arguments


def test_ctrl_c_while_the_command_itself_is_imported():
    program = """
import builtins, runpy
load = builtins.__import__

def interrupted(name, *rest, **more):
    if name == "mdssd.cli.parser":
        raise KeyboardInterrupt
    return load(name, *rest, **more)

builtins.__import__ = interrupted
runpy.run_module("mdssd", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "mdssd: interrupted\n")


# --- names that would change what a terminal shows ----------------------------------------------


def test_names_are_printed_with_escapes_and_written_as_they_are(tmp_path, capfd):
    """A class and an image have an escape sequence and a line end in their names."""
    red, lines, umlaut = "\x1b[31mred", "a\nQb", "Käfer 🐞 甲虫"
    root = tmp_path / "bugs"
    (root / "labels").mkdir(parents=True)
    (root / "images").mkdir()
    for name, row in (("\x1b[2Jx", "9 .5 .5 .1 .1"), ("y\nQz", "0 .5 .5 .1 .1"), ("w", "zero")):
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
        (root / "labels" / f"{name}.txt").write_text(f"0 .5 .5 .2 .2\n{row}\n")
    content = {"train": "images", "val": "images", "names": [lines, red, umlaut]}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    options = ["--model", "ssd300", "--width", "0.0625", "--batch-norm", "--threads", "1"]
    for words in (
        ["data", "check", root, "--out", out / "check"],
        ["data", "convert", root, "--to", "coco", "--out", out / "coco", "--allow-faults"],
        ["data", "show", root, "--out", out / "a\x1b[2J.png"],
        ["train", "--data", root, "--out", out / "run", "--workers", "0", "--iterations", "1",
         "--batch-size", "2", "--allow-faults", *options],
        ["eval", out / "run", "--data", root, "--workers", "0", "--allow-faults"],
        ["detect", out / "run", root / "images", root / "data.yaml", "--out", out / "found\x1b[2J"],
        ["train", "--data", tmp_path / "no\x1b[2J"],
        ["data", "check", "--no\x1b[2J"],
    ):  # fmt: skip
        main([str(word) for word in words])
        text = "".join(capfd.readouterr())
        assert "\x1b" not in text and "\x9b" not in text, words
        assert not [line for line in text.splitlines() if line.startswith("Q")], words
        if words[:2] == ["data", "check"] and root in words:
            table = [line for line in text.splitlines() if line.endswith(" 1.0000")]
            assert table[0].startswith("a\\nQb      ")
            assert f"  {umlaut}: 0" in text and "  \\x1b[31mred: 0" in text
            assert "labels/\\x1b[2Jx.txt:2: class 9 has no name in data.yaml" in text
    written = json.loads((out / "coco/annotations/instances_train.json").read_text())
    assert [each["name"] for each in written["categories"]] == [lines, red, umlaut]
