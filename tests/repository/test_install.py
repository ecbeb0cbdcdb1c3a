"""The installed package is found from any folder, also where a folder named mdssd is in the way."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from mdssd.version import __version__

PROGRAM = "import mdssd; print(mdssd.__version__, mdssd.Detector.__name__)"


def editable():
    # A build also leaves metadata in the clone, which does not say how mdssd was installed.
    texts = [d.read_text("direct_url.json") for d in importlib.metadata.distributions(name="mdssd")]
    return any(json.loads(text).get("dir_info", {}).get("editable") for text in texts if text)


@pytest.fixture
def above(tmp_path):
    """The folder above a clone: it holds a folder mdssd, which is not the package."""
    (tmp_path / "mdssd" / "mdssd").mkdir(parents=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.mark.skipif(not editable(), reason="mdssd is not an editable install here")
@pytest.mark.parametrize("how", [("-c", PROGRAM), ("program.py",), ("-m", "mdssd", "--version")])
def test_from_the_folder_above_the_clone(above, how):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *how], cwd=above, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
