"""The source distribution holds every file of the repository, and no file that git ignores."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a clone of git"
)
def test_the_source_distribution_has_the_files_of_the_repository(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    source = tmp_path / "source"
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for ignored in ("mdssd/_C.so", "tests/__pycache__/a.pyc", "tests/.coverage", "runs/last.json"):
        (source / ignored).parent.mkdir(parents=True, exist_ok=True)
        (source / ignored).write_text("")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=source, check=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {m.name.partition("/")[2] for m in tar.getmembers() if m.isfile()}
    added = {name for name in names if name in ADDED or name.startswith("mdssd.egg-info/")}
    assert names - added == files
