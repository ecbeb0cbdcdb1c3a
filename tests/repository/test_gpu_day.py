"""tools/gpu_day.py: the plan of the first hour on a GPU, its slices, its records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mdssd.ops import _modules

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


@pytest.fixture(scope="module")
def gpu_day() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import gpu_day

        yield gpu_day


@pytest.fixture
def day(gpu_day: ModuleType, tmp_path: Path) -> Any:
    made = gpu_day.Day(tmp_path / "day")
    made.about = {"gpu": "NVIDIA H200", "driver": "580", "commit": "0123", "versions": {}}
    return made


def script(gpu_day: ModuleType, name: str, text: str, **more: Any) -> Any:
    return gpu_day.Step(name, [sys.executable, "-c", text], **more)


def of_pytest(gpu_day: ModuleType, name: str, folder: Path, text: str) -> Any:
    """Return a step that runs pytest on a file with this text."""
    path = folder / f"test_{name}.py"
    path.write_text(text)
    command = gpu_day.gpu_check.pytest("-p", "no:cacheprovider", str(path))
    return gpu_day.Step(name, command, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


def record(day: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in day.record(name).read_text().split("\n") if line]


def test_the_plan_checks_before_it_measures_and_reports_last(gpu_day, tmp_path):
    names = [step.name for step in gpu_day.plan(tmp_path, False)]
    order = ["build", "info", "graphs", "ops", "bench-ops", "bench-models", "train-step"]
    order += ["profile-1", "memcheck-cuda", "suite", "bench-cpu", "report"]
    assert [name for name in names if name in order] == order
    checked = {step.name for step in gpu_day.gpu_check.steps()}
    assert checked < set(names) and len(names) == len(set(names))
    steps = {step.name: step for step in gpu_day.plan(tmp_path, False)}
    assert [name for name in names if steps[name].essential] == ["build", "info"]
    assert "cuda and not latency" in steps["bench-ops"].command and steps["bench-ops"].divisible
    assert steps["build"].makes and not steps["build"].divisible
    # Nothing has been measured that could be profiled.
    assert "ncu" in steps["profile-1"].not_here or "not measured" in steps["profile-1"].not_here


def test_a_rehearsal_pretends_and_names_what_it_leaves_out(gpu_day, tmp_path):
    steps = {step.name: step for step in gpu_day.plan(tmp_path, True)}
    for name, step in steps.items():
        plugin = "pretend_gpu" in step.command or str(TOOLS / "pretend_gpu.py") in step.command
        assert plugin or step.not_here or name == "report", name
    left_out = [name for name, step in steps.items() if step.not_here]
    sanitizers = [name for name in steps if name.endswith(("check-cuda", "check-triton"))]
    assert left_out[-2:] == ["ops-cpu", "bench-cpu"]
    assert left_out[:-2] == ["build", *[f"profile-{k}" for k in range(1, 7)], *sanitizers]
    assert str(tmp_path) in steps["report"].command  # and not benchmarks/results


def test_without_a_package_a_step_says_which(gpu_day, tmp_path, monkeypatch):
    find = gpu_day.importlib.util.find_spec
    absent = ("pytest_benchmark", "matplotlib")
    monkeypatch.setattr(
        gpu_day.importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    steps = {step.name: step for step in gpu_day.plan(tmp_path, False)}
    assert steps["bench-ops"].not_here == "needs pytest_benchmark"
    assert steps["report"].not_here == "needs matplotlib" and not steps["graphs"].not_here


def test_steps_run_once_and_a_failed_one_holds_nothing_up(gpu_day, day, capsys):
    steps = [
        script(gpu_day, "fails", "print('the reason'); raise SystemExit(4)"),
        script(gpu_day, "absent", "", not_here="needs ncu"),
        gpu_day.Step("no-program", ["/no/such/program"]),
        script(gpu_day, "works", f"open({str(day.folder / 'n')!r}, 'a').write('x')"),
    ]
    assert gpu_day.go_on(day, lambda: steps, 1)
    assert gpu_day.go_on(day, lambda: steps, 1)
    assert (day.folder / "n").read_text() == "x"
    outcomes = {name: row["outcome"] for name, row in day.steps.items()}
    assert outcomes == {
        "fails": "failed, exit status 4",
        "absent": "not run: needs ncu",
        "no-program": "failed, exit status 127",
        "works": "passed",
    }
    assert "the reason" in day.steps["fails"]["output"]
    assert "No such file" in day.steps["no-program"]["output"]
    capsys.readouterr()
    gpu_day.summarise(day, steps, pretend=False)
    text = capsys.readouterr().out
    for name, outcome in outcomes.items():
        assert any(
            line.startswith(f"{name} ") and line.endswith(outcome) for line in text.splitlines()
        )
    written = json.loads(gpu_day.write_day(day, steps).read_text())
    assert [row["step"] for row in written["day"]["steps"]] == list(outcomes)
    assert written["mdssd"]["gpu"] == "NVIDIA H200" and written["mdssd"]["commit"] == "0123"


def test_nothing_runs_after_a_failed_build(gpu_day, day):
    steps = [
        script(gpu_day, "build", "raise SystemExit(1)", essential=True),
        script(gpu_day, "next", ""),
    ]
    assert gpu_day.go_on(day, lambda: steps, 1) and list(day.steps) == ["build"]
    steps[0] = script(gpu_day, "build", "", essential=True)  # mended
    assert gpu_day.go_on(day, lambda: steps, 1) and day.steps["next"]["outcome"] == "passed"


def test_a_step_whose_product_is_gone_runs_again(gpu_day, day):
    steps = [script(gpu_day, "build", "", makes="no/such/file*.so"), script(gpu_day, "next", "")]
    for calls in (1, 2):
        gpu_day.go_on(day, lambda: steps, 1)
        assert day.steps["build"]["calls"] == calls and day.steps["next"]["calls"] == 1


def test_a_step_that_takes_longer_than_a_call_is_given_up(gpu_day, day, tmp_path):
    child = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    steps = [script(gpu_day, "long", child), script(gpu_day, "next", "")]
    start = time.monotonic()
    assert gpu_day.go_on(day, lambda: steps, 2 / 60) is False
    assert time.monotonic() - start < 30  # of the 60 seconds
    assert day.steps["long"]["outcome"] == "failed, not done after 2 s"
    assert gpu_day.go_on(day, lambda: steps, 1) and day.steps["next"]["outcome"] == "passed"


SLOW = """
import pytest, time
@pytest.mark.parametrize("k", range(3))
def test(k):
    open({path!r}, "a").write(str(k))
    time.sleep(0.2)
"""


def test_tests_go_on_where_the_time_was_up(gpu_day, day, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "RESERVE", 1000)  # so each slice is over after one test
    step = of_pytest(gpu_day, "slow", tmp_path, SLOW.format(path=str(tmp_path / "ran")))
    for k in range(2):
        assert gpu_day.go_on(day, lambda: [step], 1) is False
        assert day.steps["slow"]["outcome"] == "interrupted"
        assert day.steps["slow"]["passed"] == k + 1
    monkeypatch.setattr(gpu_day, "RESERVE", 0)
    assert gpu_day.go_on(day, lambda: [step], 1) and day.steps["slow"]["outcome"] == "passed"
    assert day.steps["slow"]["passed"] == 3 and (tmp_path / "ran").read_text() == "012"


CRASHES = """
import os, signal
def test_first(): pass
def test_crashes(): os.kill(os.getpid(), signal.SIGKILL)
def test_fails(): assert "expected" == "found"
def test_last(): pass
"""


def test_a_test_that_ends_the_process_does_not_end_the_others(gpu_day, day, tmp_path, capsys):
    step = of_pytest(gpu_day, "crash", tmp_path, CRASHES)
    assert gpu_day.go_on(day, lambda: [step], 1)
    row = day.steps["crash"]
    assert (row["passed"], row["failed"]) == (2, 2) and row["calls"] == 1
    assert row["outcome"] == "failed, 2 of 4 tests"
    why = {id.partition("::")[2]: text for id, text in row["failures"].items()}
    assert "ended during this test" in why["test_crashes"] and "expected" in why["test_fails"]
    gpu_day.summarise(day, [step], pretend=False)
    assert f"failed in crash: {next(iter(row['failures']))}" in capsys.readouterr().out
    # What failed runs again, when it is mended.
    path = Path(step.command[-1])
    path.write_text(CRASHES.replace("os.kill", "print").replace('"found"', '"expected"'))
    day.forget("crash", all_tests=False)
    assert gpu_day.go_on(day, lambda: [step], 1)
    assert day.steps["crash"]["outcome"] == "passed" and day.steps["crash"]["passed"] == 4


UNUSABLE = """
import sys, types
torch = sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace())
broken = []
def fault():
    if broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")
torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = fault
def test_a(): fault()
def test_b():
    broken.append(1)
    fault()
def test_c(): fault()
"""


def test_after_a_kernel_fault_the_next_test_has_a_new_process(gpu_day, day, tmp_path):
    step = of_pytest(gpu_day, "fault", tmp_path, UNUSABLE)
    assert gpu_day.go_on(day, lambda: [step], 2)
    row = day.steps["fault"]
    assert (row["passed"], row["failed"]) == (2, 1) and "illegal memory" in str(row["failures"])
    assert "unusable in this process: CUDA error: an illegal" in str(record(day, "fault"))


def test_a_checker_that_finds_something_fails_the_step(gpu_day, day, tmp_path):
    step = of_pytest(gpu_day, "checked", tmp_path, "def test(): pass")
    program = "import subprocess, sys; subprocess.run(sys.argv[1:]); sys.exit(9)"
    command = [sys.executable, "-c", program, *step.command]
    assert gpu_day.go_on(day, lambda: [gpu_day.Step("checked", command, step.environment)], 1)
    assert day.steps["checked"]["outcome"] == "failed, exit status 9"
    assert day.steps["checked"]["passed"] == 1


PROGRAM = """
import os, sys
sys.path.insert(0, {tools!r})
import gpu_day
from pathlib import Path
day = gpu_day.Day(Path({folder!r}))
assert day.lock(), "locked"
day.load()
day.about = {{"gpu": "g", "driver": "d", "commit": "c"}}
step = gpu_day.Step("slow", gpu_day.gpu_check.pytest("-p", "no:cacheprovider", {path!r}))
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
print(gpu_day.go_on(day, lambda: [step], 1), day.steps["slow"]["outcome"])
"""


INTERRUPT = pytest.param(signal.SIGINT, marks=pytest.mark.nightly("the same as SIGKILL, longer"))


@pytest.mark.parametrize("sent", [signal.SIGKILL, INTERRUPT])
def test_a_call_that_is_killed_in_the_middle_goes_on(tmp_path, sent):
    path, ran = tmp_path / "test_slow.py", tmp_path / "ran"
    path.write_text(SLOW.format(path=str(ran)).replace("0.2", "1.0"))
    folder = tmp_path / "day"
    program = PROGRAM.format(tools=str(TOOLS), folder=str(folder), path=str(path))
    first = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    while not (ran.exists() and len(ran.read_text()) == 2):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(sent)
    first.wait()
    time.sleep(0.5)
    assert len(ran.read_text()) == 2, "the step outlived its call"
    state = json.loads((folder / "state.json").read_text())
    assert not state["steps"]["slow"]["finished"]
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert second.stdout.splitlines()[-1] == "True passed", second.stdout + second.stderr
    assert ran.read_text() == "0112"  # the second, in which it was killed, ran again


def test_two_calls_do_not_run_at_once(gpu_day, tmp_path):
    first, second = gpu_day.Day(tmp_path), gpu_day.Day(tmp_path)
    assert first.lock() and not second.lock()


def test_a_day_belongs_to_one_device_and_names_commits(gpu_day, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_day, "plan", lambda folder, pretend: [])
    about = {"gpu": "NVIDIA H200", "driver": "d", "commit": "a"}
    monkeypatch.setattr(gpu_day, "facts", lambda pretend: dict(about))
    folder = tmp_path / "day"
    monkeypatch.setattr("sys.argv", ["gpu_day.py", "--folder", str(folder)])
    handler = signal.getsignal(signal.SIGTERM)
    assert gpu_day.main() == 0
    about["commit"] = "b"
    assert gpu_day.main() == 0
    assert "what is done is of commit a" in capsys.readouterr().out
    about["gpu"] = "NVIDIA H100"
    with pytest.raises(SystemExit):
        gpu_day.main()
    assert "is about NVIDIA H200, this is NVIDIA H100; --fresh" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["gpu_day.py", "--folder", str(folder), "--fresh"])
    assert gpu_day.main() == 0
    assert len(list(tmp_path.glob("day-*/state.json"))) == 1  # the old one is kept
    about["gpu"] = None
    with pytest.raises(SystemExit):
        gpu_day.main()
    assert "torch sees no NVIDIA GPU here" in capsys.readouterr().err
    signal.signal(signal.SIGTERM, handler)


def test_after_a_step_that_runs_again_the_report_is_written_again(gpu_day, tmp_path, monkeypatch):
    counts = {name: tmp_path / name for name in ("mended", "report")}
    steps = [
        script(gpu_day, name, f"open({str(path)!r}, 'a').write('x'); raise SystemExit({code})")
        for (name, path), code in zip(counts.items(), (4, 0), strict=True)
    ]
    monkeypatch.setattr(gpu_day, "plan", lambda folder, pretend: steps)
    about = {"gpu": "NVIDIA H200", "driver": "d", "commit": "a"}
    monkeypatch.setattr(gpu_day, "facts", lambda pretend: about)
    monkeypatch.setattr(gpu_day.signal, "signal", lambda *_: None)
    command = ["gpu_day.py", "--folder", str(tmp_path / "day")]
    for more in ([], [], ["--again", "failed"]):
        monkeypatch.setattr("sys.argv", [*command, *more])
        assert gpu_day.main() == 1
    assert [path.read_text() for path in counts.values()] == ["xx", "xx"]


CSV = """==PROF== Connected to process 7
"ID","Kernel Name","Block Size","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value"
"0","void mdssd::(anonymous namespace)::scan_kernel<mdssd::Half>(int)","(256, 1, 1)","(8, 1, 1)","S","Duration","us","2.50"
"0","void mdssd::(anonymous namespace)::scan_kernel<mdssd::Half>(int)","(256, 1, 1)","(8, 1, 1)","S","Memory Throughput","%","71.5"
"0","void mdssd::(anonymous namespace)::scan_kernel<mdssd::Half>(int)","(256, 1, 1)","(8, 1, 1)","M","Memory Throughput","Gbyte/s","3,000.1"
"1","void mdssd::<unnamed>::scan_kernel<mdssd::Half>(int)","(256, 1, 1)","(9, 1, 1)","S","Duration","us","1.00"
"2","mdssd::<unnamed>::mask_kernel(int)","(64, 1, 1)","(1,234, 1, 1)","S","Duration","ms","1.00"
"""  # noqa: E501


def test_what_ncu_saw_is_read_by_kernel(gpu_day, tmp_path):
    (tmp_path / "ncu-nms.csv").write_text(CSV)
    (tmp_path / "ncu-empty.csv").write_text("==ERROR== nothing\n")
    found = gpu_day.gpu_profile.collect(tmp_path)
    assert list(found) == ["nms"]
    mask, scan = found["nms"]
    assert (mask["kernel"], mask["grid"]) == ("mask_kernel", "(1,234, 1, 1)")
    assert (scan["kernel"], scan["duration"]) == ("scan_kernel<Half>", [2.5, "us"])
    assert scan["memory"] == [71.5, "%"]


def test_rows_of_another_commit_say_so(gpu_day, day):
    for number, commit in enumerate(("0123", "4567")):
        info = {"node": f"benchmarks/test_ops.py::{number}", "commit": commit, "peer": "mdssd cuda"}
        line = {"row": {"extra_info": info}, "about": {"copy": [], "matmul": [], "commit": commit}}
        day.record(f"bench-{number}").write_text(json.dumps(line) + "\n")
    data = json.loads(gpu_day.write_day(day, []).read_text())
    runs = [row["extra_info"].get("run") for row in data["benchmarks"]]
    assert runs == [None, "commit 4567"] and data["mdssd"]["commit"] == "0123"


def test_every_side_of_a_row_is_kept_and_the_last_measurement_of_each(gpu_day, day):
    lines = []
    for peer, value in (("mdssd cuda", 1), ("torchvision", 2), ("mdssd cuda", 3)):
        info = {"node": "benchmarks/test_ops.py::test_nms[cuda]", "commit": "0123", "peer": peer}
        about = {"copy": [], "matmul": [], "commit": "0123"}
        lines.append({"row": {"extra_info": info, "value": value}, "about": about})
    lines += 2 * [{"left_out": "test_nms[cuda], lsnms", "why": "needs lsnms"}]
    day.record("bench").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, about, skipped = gpu_day.measured(day.folder)
    found = [(row["extra_info"]["peer"], row["value"]) for row in rows]
    assert found == [("mdssd cuda", 3), ("torchvision", 2)]
    assert skipped == {"needs lsnms": ["test_nms[cuda], lsnms"]}


def row(op: str, device_us: float, floor_us: float, peer: str = "mdssd cuda") -> dict[str, Any]:
    info = {"op": op, "peer": peer, "device_us": device_us, "floor_s": floor_us * 1e-6}
    return {"extra_info": info | {"node": f"benchmarks/test_ops.py::test[{op}-{device_us}]"}}


def test_the_operators_furthest_from_their_floor_are_profiled(gpu_day, tmp_path):
    rows = [
        row("nms", 160, 0.3),
        row("nms", 40, 0.3),
        row("l2norm_add_relu", 100, 64),
        row("match_priors", 4, 0.001),  # the time of a launch or two
        row("encode_targets", 900, 2, peer="torch, usual"),
        row("multibox_loss forward and backward", 29, 13),
    ]
    profile = gpu_day.gpu_profile
    found = profile.furthest(rows, 3)
    names = ["nms", "multibox_loss forward and backward", "l2norm_add_relu"]
    assert [each["extra_info"]["op"] for each in found] == names
    command = profile.command("/bin/ncu", found[0], tmp_path)
    assert command[0] == "/bin/ncu" and command[-1].endswith("test[nms-160]")
    assert "none" in command[command.index("--clock-control") :]


def test_test_files_are_left_out_where_a_package_is_missing(gpu_day, tmp_path, monkeypatch):
    assert not gpu_day.gpu_check.left_out()
    find = gpu_day.importlib.util.find_spec
    monkeypatch.setattr(
        gpu_day.importlib.util,
        "find_spec",
        lambda name: find(name) if name != "defusedxml" else None,
    )
    left_out = gpu_day.gpu_check.left_out()
    assert left_out["benchmarks/test_loader.py"] == "needs defusedxml"
    assert not {name for name in left_out if name.startswith(("tests/ops/test_ops", "tests/ptx"))}
    steps = {step.name: step for step in gpu_day.plan(tmp_path, False)}
    assert {f"--ignore={name}" for name in left_out if name.startswith("tests")} < set(
        steps["suite"].command
    )
    assert "--ignore=benchmarks/test_tiles.py" in steps["bench-cpu"].command
    assert not steps["bench-models"].not_here  # its rows of a Detector are skipped


@pytest.mark.nightly("rehearses a day on a GPU, 15 minutes")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(_modules.simt is None, reason="no mdssd._simt")
def test_a_whole_day_rehearses_green_and_leaves_no_result(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark")
    results = {path: path.read_bytes() for path in (ROOT / "benchmarks/results").iterdir()}
    pages = {path: path.read_bytes() for path in (ROOT / "docs/benchmarks.md", ROOT / "README.md")}
    command = [sys.executable, str(TOOLS / "gpu_day.py"), "--pretend", "--folder", str(tmp_path)]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_XDIST_WORKER"}
    status, calls = 3, 0
    while status == 3 and calls < 20:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        status, calls = done.returncode, calls + 1
    assert status == 0, done.stdout[-5000:] + done.stderr[-2000:]
    kept = json.loads((tmp_path / "benchmarks/results/pretended-gpu.json").read_text())
    assert kept["day"]["unfinished"] == [] and kept["mdssd"]["gpu"] == "pretended GPU"
    ops = {row["extra_info"]["op"] for row in kept["benchmarks"]}
    assert {"detection_output", "nms", "merge_boxes", "encode_targets", "network"} < ops
    assert {"multibox_loss forward and backward", "training step", "detector"} < ops
    assert "### What was checked" in (tmp_path / "docs/benchmarks.md").read_text()
    assert "| training step |" in (tmp_path / "README.md").read_text()
    assert results == {path: path.read_bytes() for path in (ROOT / "benchmarks/results").iterdir()}
    assert pages == {path: path.read_bytes() for path in pages}
    for what in ("build", "CUDA graphs", "profile"):
        assert f"not rehearsed: {what}" in done.stdout
