"""Without the native module the operators are slow, and one warning says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mdssd.ops import _modules

PACKAGE = Path(_modules.__file__).parents[1]
LIBRARY = next(PACKAGE.glob("_C.*"))
# Runs mdssd/ops/_modules.py alone, which takes a tenth of a second: importing mdssd.ops imports
# torch.
PROGRAM = """
import runpy, mdssd
print(runpy.run_path(mdssd.__path__[0] + "/ops/_modules.py")["native"] is not None)
"""


def package(folder: Path, clone: bool) -> Path:
    """The parts of the package that load the native module, without it."""
    for name in ("__init__.py", "version.py", "ops/_modules.py"):
        (folder / "mdssd" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, folder / "mdssd" / name)
    if clone:
        (folder / "csrc").mkdir()
    return folder


def loads(folder: Path, *paths: Path) -> tuple[bool, list[str]]:
    """Whether the native module loads in a Python that starts in `folder`, and the warnings."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    # -S leaves out site-packages, where an import hook may lead to another mdssd.
    command = [sys.executable, "-S", "-c", PROGRAM]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    warnings = [line for line in result.stderr.splitlines() if "Warning" in line]
    return result.stdout.strip() == "True", warnings


def test_sources_that_were_not_built(tmp_path: Path) -> None:
    clone = package(tmp_path / "clone", clone=True)
    native, (warning,) = loads(clone)
    assert not native
    assert "about 35 times slower" in warning and "No module named 'mdssd._C'" in warning
    assert f"imports the sources in {clone}" in warning
    assert warning.endswith("run `pip install -e .` there")


def test_sources_that_hide_an_installed_package(tmp_path: Path) -> None:
    clone = package(tmp_path / "clone", clone=True)
    site = package(tmp_path / "site", clone=False)
    (site / "mdssd" / LIBRARY.name).symlink_to(LIBRARY)
    native, (warning,) = loads(clone, site)  # `python -c` puts the folder that it starts in first
    assert not native
    assert warning.endswith(f"or start Python elsewhere to use the mdssd in {site}")
    assert loads(tmp_path, site) == (True, [])


@pytest.mark.parametrize("name", ["_C.cpython-37m-x86_64-linux-gnu.so", LIBRARY.name])
def test_a_module_that_this_python_cannot_load(tmp_path: Path, name: str) -> None:
    package(tmp_path, clone=False)
    path = tmp_path / "mdssd" / name
    path.write_bytes(b"not a library")
    native, (warning,) = loads(tmp_path)
    assert not native
    assert warning.endswith(f"{path} is of no use to this Python; install mdssd again")


def test_an_incomplete_install(tmp_path: Path) -> None:
    package(tmp_path, clone=False)
    native, (warning,) = loads(tmp_path)
    assert not native and warning.endswith("mdssd has no such file; install mdssd again")
