"""What can be typed: help at once, a description of every option, a module for every command."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys

import pytest

from mdssd.cli import make_parser, values
from mdssd.data.augment import MAX_EXPAND
from mdssd.models.options import MAX_WIDTH


def leaves(parser, name="mdssd"):
    """The parsers that have no subcommands, by what must be typed for them."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return {name: parser}
    found = {}
    for verb, sub in groups[0].choices.items():
        found |= leaves(sub, f"{name} {verb}")
    return found


LEAVES = leaves(make_parser())


HELP = [["--version"], ["--help"], *([*name.split()[1:], "--help"] for name in LEAVES)]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_does_not_wait_for_heavy_packages(arguments):
    code = (
        "import sys; from mdssd.cli import main; status = main(sys.argv[1:]);"
        "print(status, {'torch', 'numpy', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 set()"


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_is_described(name):
    for action in LEAVES[name]._actions:
        assert action.help, f"{name} {action.dest}"


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_a_module(name):
    command = LEAVES[name].get_default("command")
    assert callable(importlib.import_module(f"mdssd.cli.commands.{command}").run)


def test_none_switches_off():
    parse = values.or_none(values.count)
    assert parse("none") is None and parse("3") == 3


@pytest.mark.parametrize("name", LEAVES)
def test_help_fits_80_columns_and_shows_an_example(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        make_parser().parse_args([*name.split()[1:], "--help"])
    text, _, examples = capsys.readouterr().out.partition("\nexample")
    assert all(len(line) < 80 for line in text.splitlines())
    assert LEAVES[name].description and f"  {name}" in examples
    assert not re.search(r"--[a-z-]+-\n", text)  # no option is divided between two lines


def test_examples_can_be_typed():
    for parser in LEAVES.values():
        for example in parser.epilog.splitlines()[1:]:
            assert make_parser().parse_args(shlex.split(example)[1:]).command


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (values.count, ["1", "2147483647"], ["0", "-1", "1e9", "²", "9" * 20, "9" * 5000, ""]),
        (values.number, ["0", "7"], ["-1", "0.5", "nan"]),
        (values.threads, ["1", "8", "64"], ["0", "100000"]),
        (values.workers, ["0", "8"], ["100000"]),
        (values.above_zero, ["0.1", "1e-9"], ["0", "-1", "nan", "inf", "1e999", "x"]),
        (values.from_zero, ["0", "2"], ["-0.1", "nan"]),
        (values.expand, ["1", "4.5", str(MAX_EXPAND)], ["0.9", "inf", str(MAX_EXPAND + 1)]),
        (values.below_one, ["0", "0.99"], ["1", "-1", "nan"]),
        (values.fraction, ["0", "1", "0.5"], ["1.1", "nan", "-0.1"]),
        (values.share, ["1", "0.1"], ["0", "nan"]),
        (values.width, ["0.0625", str(MAX_WIDTH)], ["0", str(MAX_WIDTH + 1), "nan"]),
        (values.device, ["cpu", "cuda", "cuda:1", "xpu"], ["banana", "cuda:", "cuda:-1", ""]),
        (values.one_of(["a", "b"]), ["a"], ["c", ""]),
        (values.drops, ["5,9", "0.5,0.8"], ["9,5", "0.5,5", "0", "1.5", "nan", "x", "5,5", ""]),
        (values.names, ["a,b"], ["a,a", "", "a,,b"]),
    ],
)
def test_values(parse, good, bad):
    for text in good:
        parse(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            parse(text)


def test_places_to_write(tmp_path):
    (tmp_path / "file.json").write_text("{}")
    for parse in (values.folder, values.new_file):
        assert parse(str(tmp_path / "a/b")) == str(tmp_path / "a/b")
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            parse(str(tmp_path / "file.json" / "b"))
        assert str(caught.value) == f"expected a folder, but {tmp_path / 'file.json'} is JSON"
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        values.new_file(str(tmp_path))
    assert str(caught.value) == f"expected a file to write, but {tmp_path} is a folder"
