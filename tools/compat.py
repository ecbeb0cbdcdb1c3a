"""Run the adapters' and the operators' tests against other releases, and write what was seen.

    python tools/compat.py --venv build/compat                      # the newest torch, torchvision
    python tools/compat.py --venv build/compat-2.6 --torch 2.6.0 --torchvision 0.21.0

Makes a virtual environment with torch, torchvision and, where they can be had, the other packages
that have adapters; runs the tests of tests/integrations and of tests/ops in it; and writes the
versions and the numbers of tests into docs/compatibility.md, one row for each version of torch and
torchvision. The native modules are those that lie in mdssd/, so build the package first with the
same Python; they do not depend on the version of torch. `make compat` does both. The exit status is
1 if a test failed; the page then has no new row.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEST_TOOLS = ("pytest", "hypothesis", "numpy", "onnx", "onnxscript")
# Packages with adapters, without what they depend on, most of which their NMS does not need.
ADAPTED = ("ultralytics", "sahi", "supervision", "effdet")
NEEDED_BY_ADAPTED = (
    *("omegaconf", "scipy", "requests", "psutil", "polars", "timm", "pyDeprecate", "py-cpuinfo"),
    *("shapely", "click", "fire", "termcolor", "ultralytics-thop", "huggingface_hub"),
)
# Without Triton, whose interpreter needs a numpy of its own time.
RUNS = {
    "adapters": ("tests/integrations", "-k", "not triton"),
    "operators": ("tests/ops", "--small", "-k", "cpp"),
}
HEAD = """# Which versions were seen to work

`make compat` makes an environment with the newest torch and torchvision that pip finds. In it, it
runs the tests of the adapters against the real packages and those of the operators, all in C++, and
writes this page. `make compat TORCH=2.6.0 TORCHVISION=0.21.0` takes other versions. Skipped tests
need a package or a machine that was not there. A version that is not listed was not tried; pip
accepts torch from 2.6 on.

"""
GAINS = """
## What a patch gains

On the real packages, on one thread of this project's machine, beside whatever else ran there: both
sides in turns on the same inputs, the medians of their milliseconds, and the median of the ratios
of neighbouring calls. `python -m benchmarks.real_codebases` in that environment writes this table.
Codebases that are no packages are measured from a folder, and have a commit beside their name.

"""
GAIN_COLUMNS = ("package", "call", "its own, ms", "patched, ms", "gain")
COLUMNS = ("Python", "torch", "torchvision", "adapters", "operators", "other packages")


class Seen(NamedTuple):
    """A row of the page: versions, and what pytest counted in each run."""

    python: str
    torch: str
    torchvision: str
    adapters: str
    operators: str
    others: str


def rows(page: str) -> list[Seen]:
    """Return the rows that a page has."""
    return [Seen(*cells) for cells in _cells(page.partition(GAINS)[0])]


def gains(page: str) -> list[tuple[str, ...]]:
    """Return the rows of the second table."""
    return _cells(page.partition(GAINS)[2])


def _cells(text: str) -> list[tuple[str, ...]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[1:]]


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def render(seen: Sequence[Seen], gained: Sequence[Sequence[str]] = ()) -> str:
    """Return the page with these rows, the newest torch first, and the gains."""

    def version(row: Seen) -> tuple[list[int], str]:
        return [int(part) for part in re.findall(r"\d+", row.torch)[:3]], row.python

    page = HEAD + _table(COLUMNS, sorted(seen, key=version, reverse=True))
    return page + GAINS + _table(GAIN_COLUMNS, gained) if gained else page


def with_row(page: str, row: Seen) -> str:
    """Return the page with a row in place of the one of the same versions, if there is one."""
    others = [old for old in rows(page) if old[:3] != row[:3]]
    return render([*others, row], gains(page))


def with_gains(page: str, gained: Sequence[Sequence[str]]) -> str:
    """Return the page with other gains."""
    return render(rows(page), gained)


def counted(output: str) -> str:
    """Return what pytest's last line counts: "12 passed, 3 skipped"."""
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output.strip().splitlines()[-1])
    return ", ".join(f"{number} {what}" for number, what in found)


def make(folder: Path, torch: str, torchvision: str) -> Path:
    """Make the environment, or add to it what is missing; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [name for name in project["dependencies"] if not name.startswith("torch")]
    exact = [f"torch=={torch}" if torch else "torch"]
    exact.append(f"torchvision=={torchvision}" if torchvision else "torchvision")
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    upgrade = [] if torch else ["--upgrade"]
    subprocess.run([*pip, *upgrade, *exact], check=True)
    subprocess.run([*pip, *exact, *wanted, *TEST_TOOLS, *NEEDED_BY_ADAPTED], check=True)
    for name in ADAPTED:
        if subprocess.run([*pip, "--no-deps", name]).returncode:
            print(f"{name} cannot be installed here; its tests are skipped", file=sys.stderr)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the version of each package that the tests use, of those that can be imported."""
    code = (
        "import importlib, importlib.metadata as m, sys\n"
        "print('python', '.'.join(map(str, sys.version_info[:2])))\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception:\n"
        "        continue\n"
        "    print(name, m.version(name).partition('+')[0])\n"
    )
    command = [str(python), "-c", code, "torch", "torchvision", *ADAPTED]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split() for line in lines if len(line.split()) == 2)


def run(python: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """Run pytest in the environment, from this folder; return its status and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            output += line
    return process.returncode, output


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, required=True, help="the environment's folder")
    parser.add_argument("--torch", default="", help="a version, or the newest")
    parser.add_argument("--torchvision", default="", help="a version, or the newest")
    parser.add_argument("--keep", action="store_true", help="install nothing; take it as it is")
    options = parser.parse_args(arguments)
    folder = options.venv.resolve()
    python = folder / "bin" / "python"
    if not options.keep:
        python = make(folder, options.torch, options.torchvision)
    results = {name: run(python, chosen) for name, chosen in RUNS.items()}
    failed = [name for name, (status, _) in results.items() if status]
    if failed:
        print(f"{PAGE.name} is as it was, because tests failed: {', '.join(failed)}")
        return 1
    found = versions(python)
    others = ", ".join(f"{name} {found[name]}" for name in ADAPTED if name in found)
    row = Seen(
        *(found.get(name, "") for name in ("python", "torch", "torchvision")),
        *(counted(output) for _, output in results.values()),
        others,
    )
    PAGE.write_text(with_row(PAGE.read_text() if PAGE.exists() else "", row))
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
