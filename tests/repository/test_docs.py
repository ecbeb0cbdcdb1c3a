"""The pages: that their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import argparse
import functools
import importlib
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import pytest
import torch

import mdssd
from benchmarks.report import README_MARKS
from mdssd import ops
from mdssd.cli import make_parser
from mdssd.data import SyntheticScenes, write_voc
from mdssd.weights.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md")
] + sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
# Pages that tell of earlier versions of the code.
HISTORY = ("CHANGELOG.md", "NOTES.md")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def each(pages: list[Path]) -> Any:
    return pytest.mark.parametrize("page", pages, ids=[str(p.relative_to(ROOT)) for p in pages])


def test_readme_fits_on_a_page_and_names_the_command_for_the_tests() -> None:
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(README_MARKS[0])
    _, after = rest.split(README_MARKS[1])  # between the marks stands the table of a run on a GPU
    assert len((before + after).splitlines()) <= 120
    assert "\nmake test " in text


def test_install_names_every_extra() -> None:
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    # An extra without packages is kept for those who still name it.
    extras = re.findall(r"^(\w+) = \[(?!\])", table.partition("\n[")[0], re.MULTILINE)
    lines = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "docs" / "install.md").read_text())
    assert len(extras) >= 8
    assert set(extras) == {extra for line in lines for extra in line.split(",")}


# --- Python --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages' Python opens: runs/mine, DIR, photo.jpg, photos/a.jpg."""
    folder = tmp_path_factory.mktemp("inputs")
    scenes = SyntheticScenes(2)
    write_voc(scenes, folder / "DIR", "test")
    (folder / "photos").mkdir()
    (folder / "runs/mine").mkdir(parents=True)
    for name, k in (("photo.jpg", 0), ("photos/a.jpg", 1)):
        cv2.imwrite(str(folder / name), scenes[k].image[..., ::-1])
    torch.manual_seed(0)
    save_checkpoint(
        folder / "runs/mine/last.json",
        mdssd.ssd300(num_classes=6, width=0.0625),
        classes=scenes.classes,
        mean=(123.0, 117.0, 104.0),
        extra={},
    )
    return folder


@each([page for page in PAGES if blocks(page, "python")])
def test_python_runs(
    page: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page one after another, in one namespace and a folder of their own."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    compile_fully = torch.compile  # to machine code takes a minute
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compile_fully(f, backend="eager", **kw))
    torch._dynamo.reset()
    ssd_pytorch = importlib.import_module("codebases.ssd_pytorch.layers")
    monkeypatch.setitem(sys.modules, "layers", ssd_pytorch)
    supervision = importlib.import_module("codebases.supervision")
    monkeypatch.setitem(sys.modules, "supervision", supervision)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
        check = CHECKS.get((page.name, number))
        if check is not None:
            check(names)


def compiled_finds_the_same(names: dict[str, Any]) -> None:
    with torch.no_grad():
        want = names["detect"](names["images"])
    for got, expected in zip(names["found"], want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def shapes_are_as_told(names: dict[str, Any]) -> None:
    assert names["boxes"].shape == (8, 2, 100, 4)
    assert names["for_each_image"]["conv4_3_scale"].shape[0] == 2


def autocast_leaves_the_types(names: dict[str, Any]) -> None:
    assert names["loc"].dtype == torch.bfloat16
    assert names["found"].scores.dtype == torch.float32


def found_something(names: dict[str, Any]) -> None:
    assert names["count"].min() > 0


def patch_is_undone(names: dict[str, Any]) -> None:
    forward = names["layers"].modules.l2norm.L2Norm.forward
    assert forward.__module__.startswith("codebases.")


def own_detector_finds_both(names: dict[str, Any]) -> None:
    found, boxes = names["found"], names["boxes"]
    rows = slice(int(found.count))
    for box, label in zip(boxes, names["labels"], strict=True):
        own = found.boxes[0, rows][found.labels[0, rows] == label]
        assert float(ops.box_iou(box[None], own).max()) > 0.5


# After the block of this number on this page.
CHECKS = {
    ("integrations.md", 0): patch_is_undone,
    ("integrations.md", 1): own_detector_finds_both,
    ("pytorch.md", 1): compiled_finds_the_same,
    ("pytorch.md", 2): found_something,
    ("pytorch.md", 3): shapes_are_as_told,
    ("pytorch.md", 4): autocast_leaves_the_types,
    ("export.md", 0): found_something,
}


# --- commands ------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `mdssd ...` in the page's shell blocks."""
    for block in blocks(page, ""):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            if words and (found := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
                variables[found[1]] = found[2]
                words = words[1:]
            if words[:1] == [".venv/bin/mdssd"]:
                words[0] = "mdssd"
            if words[:1] in (["torchrun"], ["python"]) and "mdssd" in words:
                words = words[words.index("mdssd") :]
            if words[:1] == ["mdssd"]:
                yield words[1 : words.index(">")] if ">" in words else words[1:]


@each([page for page in PAGES if any(commands(page))])
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        try:
            make_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"mdssd {shlex.join(words)}: {capsys.readouterr().err}")


@functools.cache
def options() -> frozenset[str]:
    """Every option of the command and its subcommands."""
    found, parsers = set(), [make_parser()]
    while parsers:
        for action in parsers.pop()._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return frozenset(found)


# Options of other programs that the pages name.
FOREIGN = frozenset(
    ("--simt-shuffle", "--small", "--nightly", "--dry-run", "--add", "--benchmark-only")
    + ("--draw", "--max-restarts", "--nproc-per-node", "--no-deps", "--fresh", "--report")
    + ("--flavour", "--table")
)


@each([page for page in PAGES if page.name not in HISTORY])
def test_options_exist(page: Path) -> None:
    named = {
        option for code in CODE.findall(prose(page)) for option in re.findall(r"--[a-z-]+", code)
    }
    assert named <= options() | FOREIGN, page


@each(PAGES)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = set(re.findall(r"`make ([a-z-]+)", text)) | set(
        re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
    )
    assert named <= targets


# --- names, files, links -------------------------------------------------------------------------


@each([page for page in PAGES if page.name not in HISTORY])
def test_names_and_files_exist(page: Path) -> None:
    """`mdssd.x.y` and `ops.y` can be imported, `mdssd/x.py` and its like exist."""
    for code in CODE.findall(prose(page)):
        if code.endswith(".json"):
            continue
        if found := re.match(r"(mdssd(?:\.[A-Za-z_]\w*)+)(?:\(.*)?$", code):
            pkgutil.resolve_name(found[1])
        elif found := re.match(r"ops\.(\w+)(?:\(.*)?$", code):
            assert hasattr(ops, found[1]), code
        elif re.match(r"(mdssd|csrc|tests|docs|tools|benchmarks|demo|cmake)/[\w./-]*$", code):
            assert (ROOT / code).exists() or "soft_nms" in code, code


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """What GitHub makes of the page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles)
    return frozenset(re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in plain)


@each(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}"


@each([page for page in PAGES if page.name not in ("benchmarks.md", "small-objects.md")])
def test_lines_are_no_longer_than_110(page: Path) -> None:
    code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        code ^= line.startswith("```")
        assert code or line.startswith("|") or len(line) <= 110, f"{page.name}:{number}"


def test_every_page_of_docs_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page
