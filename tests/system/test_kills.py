"""`mdssd detect` ended at random moments; tools/kill_detect.py does it 30 times on 2,000 images."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kill_detect.py"


@pytest.mark.nightly("ends six runs of the command")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs groups of processes")
def test_a_killed_detect_leaves_whole_tables_and_no_files(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_detect", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.run(tmp_path, images=40, kills=6) == 0
