"""The benchmarks run, and their JSON becomes a report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report, small_objects, stored
from benchmarks.machine import ALLOCATOR
from benchmarks.peers import detection

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {
    "cpu": "Test(R) CPU 3000",
    "cores": 4,
    "gpu": None,
    "driver": None,
    "cuda": None,
    "versions": {"torch": "2.0"},
    "commit": "0123456789abcdef",
    "changed": False,
    "threads": 4,
    "allocator": "default",
    "copy": [{"device": "cpu", "bytes": 2**20, "bytes_per_second": 4e10}],
    "matmul": [{"device": "cpu", "dtype": "float32", "flops": 1e11}],
    "skipped": {"no GPU": ["test_nms[a]", "test_nms[b]", "test_loss[c]"]},
}


def test_the_comparison_of_detections_sees_every_one_and_leaves_padding_out():
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.6, 0.6], [0, 0, 0, 0]])
    want = detection.Found(boxes, torch.tensor([0.9, 0.5, 0.0]), torch.tensor([1, 2, 0]))
    both, one = (detection.Found(*(part[:count] for part in want)) for count in (2, 1))
    assert not detection.differences(both, want) and not detection.differences(want, both)
    assert [line.split(":")[0] for line in detection.differences(one, want)] == ["missing"]
    assert [line.split(":")[0] for line in detection.differences(want, one)] == ["additional"]


def entry(op, row, peer, median, rounds=20, **more):
    info = {"op": op, "row": row, "peer": peer, "device": "cpu", "dtype": "float32", **more}
    stats = dict.fromkeys(("median", "min", "max"), median)
    stats |= {"mean": 1.25 * median, "iqr": 0, "rounds": rounds}
    return {
        "name": f"test[{peer}]",
        "extra_info": {**ABOUT, **info},
        "stats": {**stats, "data": [median] * rounds},
    }


ENTRIES = [
    entry("nms", "small", "mdssd cpp", 0.001, floor_share=0.25, bytes=100, flops=50.0),
    entry("nms", "small", "other", 0.0025),
    entry("nms", "large", "other", 7.0, rounds=3),
    entry("nms", "10 boxes, by boxes", "mdssd cpp", 0.001, axis="boxes", x=10),
    entry("nms", "20 boxes, by boxes", "mdssd cpp", 0.002, axis="boxes", x=20),
    entry("network", "mdssd300, batch 1", "mdssd cpp", 0.3, axis="batch", x=1),
    entry("box_iou", "test size large", "mdssd cpp", 0.004),
    entry("detector", "mdssd300, 20 images", "mdssd Detector, eager", 0.02, target_fps=38.5),
]


def saved(path, entries=ENTRIES, date="2026-01-02T03:04:05", **about):
    data = {"datetime": date, "benchmarks": entries, "mdssd": {**ABOUT, **about}}
    path.write_text(json.dumps(data))
    return path


def cells(text, first):
    """Return the cells of the table row that starts with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_report_has_times_ratios_and_shares(tmp_path):
    page = report.write([saved(tmp_path / "run.json")], tmp_path / "docs")
    text = page.read_text()
    assert cells(text, "small") == ["small", "25%", "1.00", "2.50 (2.50x)"]
    assert cells(text, "large") == ["large", "-", "-", "7,000, 3 rounds"]
    assert cells(text, "20 boxes, by boxes")[-1] == "2.00"
    assert cells(text, "box_iou, large")[-1] == "4.00"
    # Frames per second from the mean of 25 ms, and the ratio to the paper's 38.5.
    reached = ["eager", "float32", "20.0", "40.0", "38.5", "**1.04x**"]
    assert cells(text, "mdssd300, 20 images")[1:] == reached
    assert "- no GPU: 2 of `test_nms`, 1 of `test_loss`" in text
    assert "0123456789ab; run on 2026-01-02" in text


def test_report_states_the_loader_in_images_per_second(tmp_path):
    entries = [
        entry("loader", "640 x 640", "mdssd loader", 0.1, images=32),
        entry("loader", "640 x 640", "OpenCV by hand", 0.4, images=32),
        entry("loader", "300 x 300", "OpenCV by hand", 0.2, images=32),
    ]
    text = report.write([saved(tmp_path / "run.json", entries)], tmp_path / "docs").read_text()
    assert cells(text, "640 x 640") == ["640 x 640", "320", "80.0 (0.250x)"]
    assert cells(text, "300 x 300") == ["300 x 300", "-", "160"]


def test_report_draws_the_charts_it_shows_and_removes_old_ones(tmp_path):
    old = tmp_path / "docs" / "benchmarks" / "old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    text = report.write([saved(tmp_path / "run.json")], tmp_path / "docs").read_text()
    charts = {path.name: path.read_bytes() for path in old.parent.iterdir()}
    assert sorted(charts) == [
        "run-latency-by-batch-size.png",
        "run-nms-float32-cpu.png",
        "run-roofline-cpu.png",
        "run-what-the-cost-grows-with.png",
    ]
    for name, data in charts.items():
        assert data.startswith(b"\x89PNG") and f"](benchmarks/{name})" in text


def test_kept_file_is_named_after_the_machine_and_makes_the_same_report(tmp_path):
    raw = saved(tmp_path / "amd.json")
    kept = report.keep(raw, tmp_path / "results")
    assert kept.name == "test-cpu-3000-4-cores.json"
    assert "data" not in json.loads(kept.read_text())["benchmarks"][0]["stats"]
    pages = [report.write([path], tmp_path / path.stem).read_text() for path in (raw, kept)]
    assert pages[0].replace("amd-", "") == pages[1].replace(f"{kept.stem}-", "")
    assert stored.machine_name({**ABOUT, "gpu": "NVIDIA H200"}) == "nvidia-h200"


def test_rows_of_another_run_replace_those_that_are_kept(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir()
    one, two, again = (
        {**entry("nms", row, "mdssd cpp", seconds), "name": row}
        for row, seconds in (("one", 0.001), ("two", 0.002), ("one", 0.004))
    )
    with pytest.raises(ValueError, match="test-cpu-3000-4-cores.json: no such file"):
        report.add(saved(tmp_path / "raw.json", [again]), results)
    report.keep(saved(tmp_path / "raw.json", [one, two]), results)
    kept = report.add(saved(tmp_path / "raw.json", [again]), results)
    text = report.write([kept], docs).read_text()
    assert cells(text, "one")[-1] == "4.00" and cells(text, "two")[-1] == "2.00"
    assert text.count("Measured in another run: commit 0123456789ab, 2026-01-02.") == 1


def test_newest_compares_the_dates_in_the_files(tmp_path):
    saved(tmp_path / "a.json", date="2026-03-01T00:00:00")
    saved(tmp_path / "b.json", date="2026-02-01T00:00:00")
    (tmp_path / "c.json").write_text("{}")  # another kind of result
    assert [path.name for path in report.newest(tmp_path)] == ["a.json"]
    saved(tmp_path / "d.json", date="2026-01-01T00:00:00", gpu="NVIDIA H200")
    saved(tmp_path / "e.json", [], date="2026-05-01T00:00:00")  # nothing measured yet
    assert [path.name for path in report.newest(tmp_path)] == ["d.json", "a.json"]
    with pytest.raises(ValueError, match="make bench"):
        report.newest(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"c\.json: not the JSON"):
        report.load(tmp_path / "c.json")


def test_figures_of_a_pretended_gpu_are_never_stored(tmp_path):
    run = saved(tmp_path / "run.json", gpu=stored.PRETENDED)
    for store in (report.keep, report.add, lambda path, folder: report.write([path], folder)):
        for folder in (stored.RESULTS, ROOT / "docs"):
            with pytest.raises(ValueError, match="pretended GPU are no results"):
                store(run, folder)
    assert report.keep(run, tmp_path).name == "pretended-gpu.json"  # a rehearsal, elsewhere
    pages = [*stored.RESULTS.iterdir(), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    for path in pages:
        assert (
            path.stem != "pretended-gpu" and f'"gpu": "{stored.PRETENDED}"' not in path.read_text()
        )


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.678, "1.68"),
        (45.44, "45.4"),
        (3348.2, "3,348"),
        (1250, "1,250"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert stored.number(value) == text


def test_report_has_the_spread_of_a_ratio_and_its_marks(tmp_path):
    calm = {"ratio": 2.25, "spread": 0.03, "wide": False, "disturbed": False}
    marked = {"ratio": 3.0, "spread": 0.2, "wide": True, "disturbed": True}
    entries = [
        entry("nms", "small", "mdssd cpp", 0.001, floor_share=0.25, floor_wide=True),
        entry("nms", "small", "other", 0.0025, **calm),
        entry("nms", "small", "third", 0.004, **marked),
        entry("loader", "640 x 640", "mdssd loader", 0.1, images=32),
        entry("loader", "640 x 640", "OpenCV by hand", 0.4, images=32, **(calm | {"ratio": 5.0})),
    ]
    text = report.write([saved(tmp_path / "run.json", entries)], tmp_path / "docs").read_text()
    other, third = "2.50 (2.25x ±3%)", "4.00 (3.00x ±20%, wide, disturbed)"
    assert cells(text, "small") == ["small", "25%, wide", "1.00", other, third]
    assert cells(text, "640 x 640") == ["640 x 640", "320", "80.0 (0.200x ±3%)"]


def test_two_runs_are_compared_by_their_ratios(tmp_path, capsys):
    def run(name, *values):
        entries = [entry("nms", "small", "mdssd cpp", 1.0, floor_share=values[0])]
        entries[0]["extra_info"] |= {"floor_spread": 0.01, "floor_wide": False}
        for number, value in enumerate(values[1:]):
            more = {"ratio": value, "spread": 0.125, "wide": number == 1, "disturbed": False}
            entries.append(entry("nms", "small", f"peer {number}", value, **more))
        return saved(tmp_path / name, entries)

    first, second = run("a.json", 0.5, 2.0, 3.0), run("b.json", 0.55, 2.2, 4.0, 9.0)
    assert report.compare(first, run("c.json", 0.44, 2.3, 3.1))
    apart = "3 ratios in both. At most 15% apart: 2 of 2 without a mark, 1 of 1 with one\n"
    assert capsys.readouterr().out == apart
    assert not report.compare(first, run("d.json", 0.5, 2.4, 3.1))
    capsys.readouterr()
    assert report.compare(first, second)  # the ratio that differs is marked
    assert capsys.readouterr().out.splitlines() == [
        "nms, small, peer 1, cpu, float32: 3.00 ±12%, wide and 4.00 ±12%, wide",
        "3 ratios in both. At most 15% apart: 2 of 2 without a mark, 0 of 1 with one",
    ]


def test_a_row_runs_with_the_allocator_set_and_others_say_why_not(tmp_path):
    """Without the settings of the allocator, the run sets them and re-executes itself."""
    pytest.importorskip(
        "pytest_benchmark", reason="needs pytest-benchmark: pip install mdssd[test]"
    )
    out = tmp_path / "out.json"
    # The child is not a worker of pytest-xdist, even if this process is.
    left_out = (*ALLOCATOR, "PYTEST_XDIST_WORKER")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "benchmarks/test_ops.py"),
            "--benchmark-only",
            *("-k", "test_box_loss"),
            f"--benchmark-json={out}",
        ],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in left_out},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row, peer = json.loads(out.read_text())["benchmarks"]
    for name, value in ALLOCATOR.items():
        assert f"{name}={value}" in row["extra_info"]["allocator"]
    assert row["extra_info"]["peer"] == "mdssd cpp" and row["stats"]["rounds"] >= 6
    assert row["extra_info"]["floor_share"] > 0 and "ratio" not in row["extra_info"]
    info = peer["extra_info"]
    assert info["peer"] == "torchvision's way" and info["ratio"] > 0 and info["spread"] >= 0
    assert {"wide", "disturbed", "attempts"} <= set(info)
    assert f"{info['peer']} {info['ratio']:.3g}x ±" in done.stdout
    assert row["name"] == "test_box_loss[cpu], mdssd cpp" != peer["name"]
    if not torch.cuda.is_available():
        assert "test_box_loss[cuda]: torch sees no NVIDIA GPU here" in done.stdout
    assert "| 32 x 31,232 |" in report.write([out], tmp_path / "docs").read_text()


def test_small_objects_page_shows_each_figure_and_keeps_the_rest(tmp_path, monkeypatch):
    def run(value):
        return {name: value + k / 8 for k, name in enumerate(small_objects.FIGURES)}

    results = {"bccd-ssd300-0.25-0": run(0.25), "bccd-mdssd300-0.25-0": run(0.5)}
    results |= {"bccd-mdssd300-0.25-1": run(0.25), "bccd-ssd300-0.25-0@0.03": run(0.125)}
    for name in ("RESULTS", "PAGE", "PICTURE", "ACCURACY"):
        monkeypatch.setattr(small_objects, name, tmp_path / name)
    (tmp_path / "RESULTS").write_text(json.dumps(results))
    start, end = small_objects.MARKS
    (tmp_path / "ACCURACY").write_text(f"before\n\n{start}\nold\n{end}\n\nafter\n")
    small_objects.write_page()
    small_objects.write_page()
    text = (tmp_path / "ACCURACY").read_text()
    assert text.startswith(f"before\n\n{start}\n| data |") and text.endswith(f"|\n{end}\n\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| BCCD, blood cells |")]
    spread = 0.25 / 2**0.5
    assert [row.split(" | ")[1:5] for row in rows] == [
        ["ssd300", "0.25", "1", "0.250"],
        ["mdssd300", "0.25", "2", f"0.375 ± {spread:.3f}"],
    ]
    page = (tmp_path / "PAGE").read_text()
    assert "| mdssd300 | 0.25 | 0.375 (0.500, 0.250) | 0.500 (0.625, 0.375) |" in page
    assert "| bccd | ssd300 | 0.25 | 0 | 0.03 | 0.125 |" in page and "cars from the air" not in page
    assert (tmp_path / "PICTURE").read_bytes().startswith(b"\x89PNG")


def test_the_page_and_the_readme_show_a_day_on_a_gpu(tmp_path, capsys):
    on_gpu = {"device": "cuda", "device_us": 250.0, "floor_share": 0.5}
    entries = [
        entry("nms", "1,000 boxes", "mdssd cuda", 0.001, **on_gpu, bytes=10),
        entry("nms", "20,000 boxes", "mdssd cuda", 0.002, **on_gpu, bytes=20),
        entry("nms", "20,000 boxes", "mdssd triton", 0.001, **on_gpu, bytes=20),
        entry("nms", "20,000 boxes", "torchvision", 0.004, **on_gpu),
        entry("detector", "mdssd300", "mdssd Detector, eager", 0.008, target_fps=38.5, **on_gpu),
        entry("detector", "mdssd300", "mdssd Detector, graph", 0.004, target_fps=38.5, **on_gpu),
    ]
    scan = {"kernel": "scan_kernel", "grid": "(8, 1, 1)", "block": "(256, 1, 1)"}
    day = {
        "steps": [
            {"step": "build", "outcome": "passed", "seconds": 61.0},
            {
                **{"step": "ops", "outcome": "failed, 1 of 3 tests", "seconds": 9.0},
                **{"passed": 1, "failed": 1, "skipped": 1},
                **{"failures": {"tests/a.py::b": "reason"}, "why_skipped": {"no ncu": 1}},
            },
        ],
        "unfinished": ["suite"],
        "left_out": {"tests/c.py": "needs defusedxml"},
        "profiles": {"nms": [{**scan, "duration": [2.5, "us"], "memory": [71.5, "%"]}]},
    }
    for number, made in enumerate(entries):
        made["name"] = f"row {number}"
        made["extra_info"]["node"] = "benchmarks/test_ops.py::test"
    run = saved(tmp_path / "day.json", entries, gpu="NVIDIA H200", driver="580", cuda="13.0")
    run.write_text(json.dumps({**json.loads(run.read_text()), "day": day}))
    root = tmp_path / "root"
    kept = report.keep(run, root / "benchmarks" / "results")
    assert kept.name == "nvidia-h200.json" and '"node"' not in kept.read_text()
    (root / "README.md").write_text("before\n")
    report.publish(report.newest(kept.parent), root)
    assert "README.md has no marks" in capsys.readouterr().out
    text = (root / "docs" / "benchmarks.md").read_text()
    assert cells(text, "build")[-2:] == ["61.0", "passed"]
    assert cells(text, "ops")[1:] == ["1", "1", "1", "9.0", "failed, 1 of 3 tests"]
    assert cells(text, "scan_kernel")[1:4] == ["(8, 1, 1) x (256, 1, 1)", "2.5 us", "71.5 %"]
    for line in ("failed in ops: `tests/a.py::b`", "skipped in ops: 1: no ncu"):
        assert f"- {line}\n" in text
    assert "- left out: tests/c.py: needs defusedxml\n- not finished: suite\n" in text
    # The table of README.md: the largest input of each operator, the faster runtime of each model.
    start, end = report.README_MARKS
    (root / "README.md").write_text(f"before\n{start}\nold\n{end}\nafter\n")
    report.publish(report.newest(kept.parent), root)
    page = (root / "README.md").read_text()
    assert page.startswith(f"before\n{start}\n| NVIDIA H200, torch 2.0 |") and "old" not in page
    assert page.endswith(f"\n\n{end}\nafter\n")
    assert cells(page, "nms")[1:] == [
        *("20,000 boxes", "2.00; on the device 0.250", "50%"),
        "torchvision: 4.00 (2.00x); on the device 0.250",
    ]
    assert cells(page, "mdssd300")[1:3] == ["float32, graph", "200 frames/s"]
