"""The options of tiles: what each command says about wrong ones."""

import pytest

from mdssd.cli import main

COMMANDS = {
    "detect": ["detect", "missing", "missing"],
    "eval": ["eval", "missing", "--scenes", "1"],
    "train": ["train", "--scenes", "1", "--out", "run"],
    "check": ["data", "check", "--scenes", "1"],
    "show": ["data", "show", "--scenes", "1", "--out", "a.png"],
}
TILE = (
    "argument --tile: expected auto, a number of pixels such as 300, or width x height such as "
    "640x384, of at most 100,000,000 pixels in all; got {!r}"
)
SMALL = (
    "argument --tile: expected sides of 32 pixels or more, as each tile is enlarged to the "
    "network's input and costs a run of the network; got {!r}"
)
OVERLAP = "argument --overlap: expected a number from 0 to 0.9, got {!r}"
SCALE = "argument --tile-scale: expected a number above 0 and at most 16, got {!r}"


def error_of(capsys, command, *options):
    assert main([*COMMANDS[command], *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mdssd: error: ") and captured.err.count("\n") == 1
    return captured.err[len("mdssd: error: ") :]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_wrong_value_is_named_with_what_is_expected(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = [
        "0",
        "-5",
        "abc",
        "1e9",
        "1000000000",
        "9" * 30,
        "20000",
        "0x300",
        "300x",
        "99x9999999",
    ]
    for text in sizes:
        assert error_of(capsys, command, "--tile", text).startswith(TILE.format(text))
    for text in ("1", "31", "640x16"):
        assert error_of(capsys, command, "--tile", text).startswith(SMALL.format(text))
    for text in ("0", "-1", "nan", "17", "x"):
        error = error_of(capsys, command, "--tile", "300", "--tile-scale", text)
        assert error.startswith(SCALE.format(text))
    error = error_of(capsys, command, "--tile", "300", "--tile-scale", "0.01")
    assert error.startswith("--tile-scale: expected tiles that show at most 100,000,000 pixels")
    for text in ("2", "1"):  # 1 is the default
        error = error_of(capsys, command, "--tile-scale", text)
        assert error == "--tile-scale: needs --tile beside it\n"
    if command == "train":  # which draws windows
        for option in (["--tile-jitter", "1.33"], ["--background-share", "0.25"]):
            assert error_of(capsys, command, *option) == f"{option[0]}: needs --tile beside it\n"
        for option in ("--overlap", "--with-whole"):
            error = error_of(capsys, command, "--tile", "300", option)
            assert error == f"unknown option {option} (see `mdssd train --help`)\n"
        return
    for text in ("1", "-0.1", "nan", "0.95", "x"):
        error = error_of(capsys, command, "--tile", "300", "--overlap", text)
        assert error.startswith(OVERLAP.format(text))
    for option in (["--overlap", "0.3"], ["--overlap", "0.2"], ["--with-whole"]):
        assert error_of(capsys, command, *option) == f"{option[0]}: needs --tile beside it\n"
    assert not list(tmp_path.iterdir())
