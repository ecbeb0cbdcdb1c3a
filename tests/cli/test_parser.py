"""What can be typed: help at once, a description of every option, a module for every command."""

import argparse
import importlib
import subprocess
import sys

import pytest

from mdssd.cli import make_parser, values


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
