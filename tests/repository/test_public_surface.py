"""Compare the names, options and file formats that users rely on with public_surface.json.

The list was written before the package was divided into rooms. `python test_public_surface.py`
prints the list as it is now. A change to the file is a change for users.
"""

import argparse
import inspect
import json
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import mdssd
from mdssd import cli, ops

LIST = Path(__file__).with_name("public_surface.json")


def signatures(module):
    return {name: _signature(getattr(module, name)) for name in sorted(module.__all__)}


def _signature(thing):
    if inspect.isclass(thing) and issubclass(thing, tuple):
        return list(thing._fields)
    if inspect.isclass(thing):
        members = {"__init__": thing.__init__} | {
            name: member for name, member in vars(thing).items() if not name.startswith("_")
        }
        members["__call__"] = thing.__call__
        return {
            name: list(inspect.signature(getattr(member, "__func__", member)).parameters)
            for name, member in members.items()
            if callable(getattr(member, "__func__", member))
        }
    if not callable(thing):
        return None
    parameters = inspect.signature(thing).parameters.values()
    return {p.name: None if p.default is p.empty else repr(p.default) for p in parameters}


def options(parser):
    """Return the options of a parser and of its subcommands: names, choices and defaults."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {name: options(sub) for name, sub in action.choices.items()}
        elif not isinstance(action, argparse._HelpAction):
            found[" ".join(action.option_strings) or action.dest] = {
                "choices": None if action.choices is None else list(map(str, action.choices)),
                "default": repr(action.default),
                "required": action.required,
                "nargs": action.nargs,
            }
    return found


def recipes():
    names = sorted(p.stem for p in (Path(mdssd.__file__).parent / "recipes").glob("*.toml"))
    found = {}
    for name in names:
        text = StringIO()
        with redirect_stdout(text):
            assert cli.main(["train", "--recipe", name, "--print-recipe"]) == 0
        lines = (line.partition("#")[0].strip() for line in text.getvalue().splitlines())
        found[name] = [line for line in lines if line]
    return found


def checkpoint_keys():
    """Return the keys of a trained checkpoint's JSON and of its nested objects."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = "train --model ssd300 --width 0.0625 --scenes 2 --batch-size 2 --iterations 1"
        with redirect_stdout(StringIO()):
            assert cli.main([*arguments.split(), "--workers", "0", "--out", folder]) == 0
        meta = json.loads(Path(folder, "last.json").read_text())
        names = sorted(p.name.split("-")[0] + p.suffix for p in Path(folder).iterdir())
    keys = {name: sorted(value) for name, value in meta.items() if isinstance(value, dict)}
    keys["training.recipe"] = sorted(meta["training"]["recipe"])
    return {"": sorted(meta), **keys, "files": names}


def surface():
    return {
        "mdssd": signatures(mdssd),
        "mdssd.ops": signatures(ops),
        "command": options(cli.make_parser()),
        "recipes": recipes(),
        "checkpoint": checkpoint_keys(),
    }


def changes(listed, now, where=""):
    """Return what is listed but missing or different now. Additions do not count."""
    if not (isinstance(listed, dict) and isinstance(now, dict)):
        return [] if listed == now else [f"{where}: was {listed}, is {now}"]
    gone = [f"{where}/{name}: is gone" for name in listed if name not in now]
    return gone + [
        change
        for name in listed
        if name in now
        for change in changes(listed[name], now[name], f"{where}/{name}")
    ]


def entries(listed):
    """The lists of a file's entries as dictionaries: unlike parameters, they have no order, and one
    more is no change for who reads the file."""
    return {name: dict.fromkeys(names) for name, names in listed.items()}


def without_later(listed, now):
    """Return the methods of a class without the parameters that were added after those listed."""
    return {name: names[: len(listed.get(name, names))] for name, names in now.items()}


def test_what_users_rely_on_is_as_listed():
    listed, now = json.loads(LIST.read_text()), surface()
    for each in (listed, now):
        each["checkpoint"] = entries(each["checkpoint"])
    for name, members in listed["mdssd"].items():
        if isinstance(members, dict) and "__init__" in members:
            now["mdssd"][name] = without_later(members, now["mdssd"][name])
    assert changes(listed, now) == []


def test_a_change_is_seen():
    listed = {"a": {"x": "1", "y": "2"}, "b": ["p"]}
    now = {"a": {"x": "3", "z": "4"}, "b": ["p", "q"]}
    assert changes(listed, now) == [
        "/a/y: is gone",
        "/a/x: was 1, is 3",
        "/b: was ['p'], is ['p', 'q']",
    ]
    assert without_later({"f": ["p"]}, {"f": ["p", "q"], "g": ["r"]}) == {"f": ["p"], "g": ["r"]}
    assert changes(entries({"b": ["p", "r"]}), entries({"b": ["p", "q"]})) == ["/b/r: is gone"]


if __name__ == "__main__":
    json.dump(surface(), sys.stdout, indent=1)
    print()
