"""Write docs/benchmarks.md, with tables and charts, from the JSON of benchmark runs.

python -m benchmarks.report [FILE ...]    use these files, or the newest of benchmarks/results,
                                          with a GPU and without
python -m benchmarks.report --keep FILE   store a run's JSON there, named after the machine
python -m benchmarks.report --add FILE    replace or add rows in the stored JSON of the machine
python -m benchmarks.report --gpu-day FILE  store what tools/gpu_day.py measured, write the page
python -m benchmarks.report --compare A B   list the ratios of two runs that differ by more than 15%

The newest run on a GPU also gives the table of README.md, between the lines `README_MARKS`.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.stored import (
    ROOT,
    Row,
    Run,
    add,
    keep,
    load,
    newest,
    number,
    refuse_pretended,
    write_between,
)
from mdssd.system.files import atomic_write

ALIKE = 1.15  # ratios of two runs that differ by at most this factor are alike
FIRST = ("mdssd cpp", "mdssd cuda")  # the default backends
OURS, OTHERS = "#1f5fa8", "#b4b8bd"
README_MARKS = ("<!-- from benchmarks/report.py -->", "<!-- end -->")
PEER_COLOURS = ("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:gray")
INTRODUCTION = """\
# Benchmarks

`make bench-report` writes this page; do not edit it. `make bench` measures the machine it runs on
and puts the result into `benchmarks/results`.

How to read the tables:

- Times are medians in milliseconds. The number in brackets says how many times longer a tool takes
  than mdssd's default backend for the same input in the same run. Only these ratios carry over to
  another machine.
- The tools of a row take turns: each round times every tool once, in a shuffled order, so that a
  slow moment slows all of them down. A ratio is the median of the rounds' ratios, with its 95%
  interval after ±. A ratio that is not known within 7% is measured up to three times and then
  marked as wide, or as disturbed if threads waited for a core in most rounds.
- Every row was checked against the plain PyTorch reference before it was timed. A note below a
  table names the tools that do less than mdssd, or something different.
- Share of the floor: the shortest possible time, divided by the measured time. The shortest
  possible time is that of a copy of all bytes that any implementation must move, or that of a
  product of two matrices with as many operations. Both take turns with the tools. The copy has the
  size of the data, so if the data fits a cache, so does the copy. On a CPU the product is the
  faster of `torch.mm` and a convolution with a kernel of 1 x 1.
- "on the device" leaves out the host's part of a call. It is measured in a CUDA graph if the call
  can be captured.

To run the benchmarks in your own environment:

```
pip install -c constraints.txt -e '.[bench]'
pip install --no-deps lsnms numba llvmlite  # optional; its pins exclude today's numpy
pip install sahi; pip install --no-deps ensemble-boxes numba llvmlite  # optional, for merged boxes
pytest benchmarks/ --benchmark-only         # all rows; -k nms for some
```

A row that cannot run, because there is no GPU or a package is missing, is listed with the reason.
The benchmark re-executes itself with glibc malloc settings that keep freed memory, for every tool;
without them eager PyTorch spends most of its time in page faults. What was tried, and why, is in
[NOTES.md](../benchmarks/NOTES.md).
"""
NOTES = {
    "detection_output": "onnxruntime's graph has no limit of 400 candidates per class, and is "
    "checked against a reference without one. \"torchvision's way\" uses this project's NMS if "
    "torchvision is not installed.",
    "merge_boxes": "sahi is its postprocess class, with objects in and out, as its predictions use "
    "it. `sahi, groups only` is the function below it, which says which boxes belong together and "
    "merges none, so it does less. Both are compiled by numba.",
    "soft_nms": "ensemble-boxes is its `soft_nms`, which is written in numpy.",
    "match_priors": "All return the index of the ground truth and the best IoU of each prior.",
    "encode_targets": 'All return offsets and labels. "torch, usual" and torch.compile also '
    "compute the offsets of the background, as ssd.pytorch does.",
    "l2norm_add_relu": "`torch.add of the two` computes less: it is the least time that any fusion "
    "of two maps can take.",
    "network": "The module alone, without post-processing.",
    "loader": "SSD's augmentation of JPEG files to 300 x 300, on one core. `OpenCV by hand` is the "
    "way of the PyTorch ports, in float32 from the start; it draws different crops.",
    "detection in tiles": "From JPEG files to boxes, on one core. SAHI runs the same network on "
    "the same tiles in the same batches, through a `Detector`. The network takes nearly all of "
    "the time.",
    "post-processing of other codebases": "Each codebase's functions as its adapter in "
    "`mdssd.integrations` replaces them, beside its own way in plain PyTorch. torchvision's and "
    "lufficc/SSD's own way uses this project's NMS if torchvision is not installed.",
    "training step": "Forward, targets, loss, backward, SGD with momentum. The rows differ in "
    "targets and loss only.",
}


# --- tables ------------------------------------------------------------------------------------


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def ratio(row: Row, base: Row, inverse: bool = False) -> str:
    """Format the ratio of a row's time to that of `base`, and its spread if it was measured.

    Args:
        inverse: Format the ratio of the rates instead.
    """
    value = row.info.get("ratio", row.median / base.median)
    text = f"{number(1 / value if inverse else value)}x"
    if "spread" in row.info:
        text += f" ±{100 * row.info['spread']:.0f}%" + marks(row.info)
    return text


def marks(info: dict[str, Any]) -> str:
    return "".join(f", {name}" for name in ("wide", "disturbed") if info.get(name))


def milliseconds(row: Row, base: Row | None) -> str:
    """Format a row's time, and its ratio to the time of `base`."""
    text = number(1000 * row.median)
    if base and base is not row:
        text += f" ({ratio(row, base)})"
    if "device_us" in row.info:
        text += f"; on the device {number(row.info['device_us'] / 1000)}"
    return text if row.rounds >= 20 else f"{text}, {row.rounds} rounds"


def share(row: Row | None) -> str:
    if row is None or "floor_share" not in row.info:
        return "-"
    return f"{100 * row.info['floor_share']:.0f}%" + (
        ", wide" if row.info.get("floor_wide") else ""
    )


def peers_table(rows: list[Row], first_ours: bool = True) -> list[str]:
    """Return a table with a line for each input and a column for each peer."""
    peers = unique(r.peer for r in rows)
    peers.sort(key=lambda peer: not peer.startswith("mdssd "))
    body = []
    for name in unique(r.row for r in rows):
        found = {r.peer: r for r in rows if r.row == name}
        base = next((found[peer] for peer in peers if peer in found), None)
        base = base if base and base.ours and first_ours else None
        cells = [milliseconds(found[p], base) if p in found else "-" for p in peers]
        body.append([name, *([share(base)] if first_ours else []), *cells])
    return table(["input", *(["share of floor"] if first_ours else []), *peers], body)


def detector_table(rows: list[Row]) -> list[str]:
    body = []
    for r in rows:
        fps, target = 1 / r.mean, r.info["target_fps"]
        factor = f"**{number(fps / target)}x**"
        cells = [r.dtype, number(1000 * r.median), number(fps), str(target), factor]
        body.append([r.row, r.peer.removeprefix("mdssd Detector, "), *cells])
    head = ["", "runtime", "dtype", "median ms", "frames/s", "paper, GTX 1080 Ti", "factor reached"]
    return table(head, body)


def rate_table(rows: list[Row]) -> list[str]:
    """Return a table of images per second, with a line for each input, a column for each peer."""
    peers = unique(r.peer for r in rows)
    body = []
    for name in unique(r.row for r in rows):
        found = {r.peer: r for r in rows if r.row == name}
        base = found.get(peers[0])
        body.append([name])
        for peer in peers:
            row = found.get(peer)
            text = number(row.info["images"] / row.median) if row else "-"
            if row and base and row is not base:
                text += f" ({ratio(row, base, inverse=True)})"
            body[-1].append(text)
    return table(["JPEG, images/s", *peers], body)


def about_table(run: Run) -> list[str]:
    about = run.about
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    commit = (about["commit"] or "unknown")[:12] + (", with changes" if about["changed"] else "")
    gpu = f"{about['gpu']}, driver {about['driver']}, CUDA {about['cuda']}"
    rates = [
        f"a copy on {device}, read and written: "
        + ", ".join(
            f"{number(c['bytes_per_second'] / 1e9)} GB/s of {c['bytes'] / 2**20:.0f} MiB"
            for c in about["copy"]
            if c["device"] == device
        )
        for device in unique(c["device"] for c in about["copy"])
    ]
    rates += [
        f"a product of {m['dtype']} matrices on {m['device']}: {number(m['flops'] / 1e12)} TFLOP/s"
        for m in about["matmul"]
    ]
    facts = {
        "processor": f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads used",
        "scheduler": about.get("scheduler", "usual"),
        "GPU": gpu if about["gpu"] else "none",
        "versions": versions,
        "commit": f"{commit}; run on {run.date}",
        "allocator": about["allocator"],
        "ceilings": "<br>".join(rates),
    }
    return table(["", ""], ([name, text] for name, text in facts.items()))


def skipped_lines(skipped: dict[str, list[str]]) -> list[str]:
    lines = []
    for reason, names in skipped.items():
        tests = [name.partition("[")[0] for name in names]
        counts = ", ".join(f"{tests.count(test)} of `{test}`" for test in unique(tests))
        lines.append(f"- {reason}: {counts}")
    return lines or ["- nothing"]


def short_table(run: Run) -> list[str]:
    """Return one line for each model and each operator, of its largest input on the GPU."""
    rows = [r for r in run.rows if r.in_tables and r.device == "cuda"]
    body = []
    detectors = [r for r in rows if r.op == "detector"]
    for name in unique(r.row for r in detectors):
        best = min((r for r in detectors if r.row == name), key=lambda r: r.mean)
        fps, target = 1 / best.mean, best.info["target_fps"]
        what = f"{best.dtype}, {best.peer.removeprefix('mdssd Detector, ')}"
        paper = f"the paper: {target}, on a GTX 1080 Ti ({number(fps / target)}x)"
        body.append([name, what, f"{number(fps)} frames/s", "-", paper])
    for op in unique(r.op for r in rows if r.op not in ("detector", "network")):
        mine = [r for r in rows if r.op == op and r.peer in FIRST]
        if not mine:
            continue
        best = max(mine, key=lambda r: r.info.get("bytes", 0))
        others = [r for r in rows if (r.op, r.row) == (op, best.row) and not r.ours]
        other = min(others, key=lambda r: r.median, default=None)
        against = f"{other.peer}: {milliseconds(other, best)}" if other else "-"
        body.append([op, best.row, milliseconds(best, None), share(best), against])
    versions = ", ".join(f"{n} {v}" for n, v in run.about["versions"].items() if n == "torch")
    head = [
        f"{run.about['gpu']}, {versions}",
        "",
        "mdssd, ms",
        "share of floor",
        "fastest other, ms",
    ]
    return table(head, body)


def day_lines(day: dict[str, Any]) -> list[str]:
    """Return the steps of tools/gpu_day.py with their results, and the profiles."""
    names = ("passed", "failed", "skipped", "seconds", "outcome")
    body = [[r["step"], *(str(r.get(name, "")) for name in names)] for r in day["steps"]]
    lines = ["### What was checked", "", *table(["step", *names], body)]
    for row in day["steps"]:
        lines += [f"- failed in {row['step']}: `{test}`" for test in row.get("failures", {})]
        for why, count in row.get("why_skipped", {}).items():
            lines.append(f"- skipped in {row['step']}: {count}: {why}")
    lines += [f"- left out: {file}: {why}" for file, why in day["left_out"].items()]
    lines += [f"- not finished: {', '.join(day['unfinished'])}"] if day["unfinished"] else []
    lines.append("")
    if day["profiles"]:
        lines += ["### The kernels of the operators furthest from their floor", ""]
    columns = ("duration", "memory", "compute", "occupancy", "registers", "cycles_per_instruction")
    for operator, launches in day["profiles"].items():
        body = []
        for launch in launches:
            cells = [" ".join(map(str, launch[name])) if name in launch else "" for name in columns]
            body.append([launch["kernel"], f"{launch['grid']} x {launch['block']}", *cells])
        head = [operator, "grid x block", *(name.replace("_", " ") for name in columns)]
        lines += table(head, body)
    return lines


# --- charts ------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def grid(count: int, width: float, heights: Sequence[float], columns: int) -> tuple[Figure, list]:
    """Create a figure with `count` axes; the tallest of `heights` sets the height of a line."""
    columns = min(columns, count)
    lines = [max(heights[i : i + columns]) for i in range(0, count, columns)]
    figure = Figure(figsize=(width * columns, sum(lines) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=lines).flatten()
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, list(axes[:count])


def bars(rows: list[Row], title: str, path: Path) -> None:
    """Draw the times of all peers as logarithmic bars, with one axes for each input."""
    names = unique(r.row for r in rows)
    groups = [sorted((r for r in rows if r.row == n), key=lambda r: r.median) for n in names]
    figure, axes = grid(len(names), 5.6, [0.75 + 0.26 * len(group) for group in groups], 2)
    for ax, name, group in zip(axes, names, groups, strict=True):
        times = [1000 * r.median for r in group]
        colours = [OURS if r.ours else OTHERS for r in group]
        drawn = ax.barh([r.peer for r in group], times, color=colours)
        ax.bar_label(drawn, [number(t) for t in times], padding=3, fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(times) / 3, max(times) * 4)
        ax.invert_yaxis()
        ax.set_title(name, fontsize=9)
        ax.set_xticks([])
        ax.minorticks_off()
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(f"{title}\nms, shorter is better (logarithmic)", fontsize=10)
    save(figure, path)


def lines(groups: dict[str, list[Row]], path: Path) -> None:
    """Plot the times of sweeps, with one axes for each sweep and one line for each peer."""
    figure, axes = grid(len(groups), 4.6, [3.6] * len(groups), 2)
    for ax, (title, rows) in zip(axes, groups.items(), strict=True):
        others = iter(PEER_COLOURS)
        for peer in unique(r.peer for r in rows):
            points = sorted((r.info["x"], 1000 * r.median) for r in rows if r.peer == peer)
            colour, width = (OURS, 2.4) if peer in FIRST else (next(others), 1.2)
            ax.plot(*zip(*points, strict=True), "o-", ms=4, lw=width, color=colour, label=peer)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ticks = unique(sorted(r.info["x"] for r in rows))
        ax.set_xticks(ticks, [f"{t:,}" for t in ticks], fontsize=8)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.minorticks_off()
        ax.set_xlabel(rows[0].info["axis"])
        ax.set_ylabel("ms")
        ax.set_title(title, fontsize=9)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    save(figure, path)


def roofline(rows: list[Row], about: dict[str, Any], device: str, path: Path) -> None:
    """Plot operations per second over operations per byte, and the two ceilings of a device."""
    figure = Figure(figsize=(8.4, 5.4), dpi=110, layout="constrained")
    ax: Axes = figure.subplots()
    low, high = 0.1, max(r.info["flops"] / r.info["bytes"] for r in rows)
    copies = {c["bytes"]: c["bytes_per_second"] for c in about["copy"] if c["device"] == device}
    mm = {m["dtype"]: m["flops"] for m in about["matmul"] if m["device"] == device}
    top = max(mm.values())
    for size, style in ((min(copies), ":"), (max(copies), "-")):
        x = [low, top / copies[size], max(high, top / copies[size])]
        ax.plot(x, [low * copies[size], top, top], style, color="#555", lw=1)
        label = f"copy of {number(size / 2**20)} MiB"
        ax.annotate(label, (low * 1.15, low * copies[size]), va="top", fontsize=8, color="#555")
    for dtype, rate in mm.items():
        ax.axhline(rate, color="#555", lw=1)
        ax.annotate(f"matrices, {dtype}", (low * 1.1, rate * 1.07), fontsize=8, color="#555")
    for index, op in enumerate(unique(r.op for r in rows)):
        mine = [r for r in rows if r.op == op]
        ax.scatter(
            [r.info["flops"] / r.info["bytes"] for r in mine],
            [r.info["flops"] / r.median for r in mine],
            s=34,
            alpha=0.8,
            marker="osD^v"[index % 5],
            label=op,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations per byte that must be moved")
    ax.set_ylabel("operations per second")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower right")
    ax.set_title(f"mdssd on {about['gpu'] if device == 'cuda' else about['cpu']}", fontsize=10)
    save(figure, path)


# --- the page ----------------------------------------------------------------------------------


class Page:
    """The lines of docs/benchmarks.md and the charts beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = INTRODUCTION.splitlines() + [""]
        self.charts: list[Path] = []

    def chart(self, run: Run, name: str, text: str, draw: Callable[..., None], *args: Any) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        path = self.folder / "benchmarks" / f"{run.name}-{slug}.png"
        draw(*args, path)
        self.charts.append(path)
        self.lines += [f"![{text}]({path.relative_to(self.folder)})", ""]

    def add(self, run: Run) -> None:
        gpu = run.about["gpu"]
        self.lines += [f"## {gpu or run.about['cpu']}", "", *about_table(run)]
        if gpu:
            self.lines += ["### In short", "", *short_table(run)]
        for op, device, dtype in unique((r.op, r.device, r.dtype) for r in run.rows if r.in_tables):
            self._op(run, op, device, dtype)
        self._sweeps(run)
        self._rooflines(run)
        self._test_sizes(run)
        self.lines += day_lines(run.day) if run.day else []
        self.lines += ["### Not measured in this run", "", *skipped_lines(run.about["skipped"]), ""]

    def _op(self, run: Run, op: str, device: str, dtype: str) -> None:
        key = (op, device, dtype)
        rows = [r for r in run.rows if r.in_tables and (r.op, r.device, r.dtype) == key]
        title = f"{op}, {dtype}, {device}"
        self.lines += [f"### {title}", ""]
        if op == "detector":
            self.lines += [
                "From a photograph of 500 x 375 in memory to its boxes, one image at a time, with "
                "post-processing. The weights are random, with scores like those of a trained "
                "network. The paper measured 2,000 images.",
                "",
                *detector_table(rows),
            ]
            return
        self.lines += rate_table(rows) if op == "loader" else peers_table(rows)
        if op in NOTES:
            self.lines += [NOTES[op], ""]
        if runs := sorted({r.info["run"] for r in rows if "run" in r.info}):
            self.lines += [f"Measured in another run: {'; '.join(runs)}.", ""]
        if len({r.peer for r in rows}) > 1:
            self.chart(run, f"{op}-{dtype}-{device}", f"{title}: bars", bars, rows, title)

    def _sweeps(self, run: Run) -> None:
        groups: dict[str, list[Row]] = {}
        for r in run.rows:
            if "axis" in r.info:
                groups.setdefault(f"{r.op} by {r.info['axis']}, {r.device}", []).append(r)
        batches = {title: rows for title, rows in groups.items() if " by batch, " in title}
        costs = {title: rows for title, rows in groups.items() if title not in batches}
        parts = {"Latency by batch size": batches, "What the cost grows with": costs}
        for heading, part in parts.items():
            if part:
                self.lines += [f"### {heading}", ""]
                self.chart(run, heading, heading, lines, part)
            for title, rows in part.items():
                self.lines += [f"{title}:", "", *peers_table(rows)]

    def _rooflines(self, run: Run) -> None:
        for device in unique(r.device for r in run.rows):
            mine = [
                r
                for r in run.rows
                if r.ours and r.device == device and r.info.get("flops") and r.info.get("bytes")
            ]
            if mine:
                self.lines += [f"### Roofline, {device}", ""]
                text = "Operations a second over operations per byte"
                self.chart(run, f"roofline-{device}", text, roofline, mine, run.about, device)

    def _test_sizes(self, run: Run) -> None:
        rows = [r for r in run.rows if r.row.startswith("test size ")]
        for device in unique(r.device for r in rows):
            here = [
                replace(r, row=f"{r.op}, {r.row.removeprefix('test size ')}")
                for r in rows
                if r.device == device
            ]
            self.lines += [f"### Every operator on every backend, {device}", ""]
            self.lines += ["At the sizes in `mdssd/testing.py`, with random priors.", ""]
            self.lines += peers_table(here)


def write(paths: Sequence[Path], folder: Path) -> Path:
    """Write benchmarks.md and its charts into `folder` and delete the charts of old reports."""
    page, runs = Page(folder), [load(path) for path in paths]
    for run in runs:
        refuse_pretended(run.about, folder)
        page.add(run)
    target = folder / "benchmarks.md"
    with atomic_write(target) as file:
        file.write("\n".join(page.lines).rstrip() + "\n")
    for old in set((folder / "benchmarks").glob("*.png")) - set(page.charts):
        old.unlink()
    return target


def write_readme(run: Run, readme: Path) -> bool:
    """Replace what stands between `README_MARKS`; return whether the page has these lines."""
    refuse_pretended(run.about, readme.parent)
    if not readme.exists():
        readme.write_text("\n".join([*README_MARKS, ""]))
    text = readme.read_text()
    if not all(mark in text for mark in README_MARKS):
        return False
    write_between(readme, README_MARKS, short_table(run))
    return True


def compare(first: Path, second: Path) -> bool:
    """Print the ratios of two runs that differ; return whether all of them have a mark.

    A share of the floor is a ratio as well: that of a copy or a product to the row's first side.
    """
    runs = []
    for path in (first, second):
        rows = {row.key: row.info for row in load(path).rows}
        found = {key: info for key, info in rows.items() if "ratio" in info}
        for key, info in rows.items():
            if "ratio" not in info and "floor_spread" in info:
                names = {"ratio": "floor_share", "spread": "floor_spread", "wide": "floor_wide"}
                found[(*key, "share of floor")] = {a: info[b] for a, b in names.items()}
        runs.append(found)
    both = [key for key in runs[0] if key in runs[1]]
    off = {key: abs(math.log(runs[1][key]["ratio"] / runs[0][key]["ratio"])) for key in both}
    worse = [key for key in sorted(both, key=off.__getitem__) if off[key] > math.log(ALIKE)]
    for key in worse:
        texts = [
            f"{number(run[key]['ratio'])} ±{100 * run[key]['spread']:.0f}%" + marks(run[key])
            for run in runs
        ]
        print(f"{', '.join(key)}: {texts[0]} and {texts[1]}")
    marked = [key for key in both if any(marks(run[key]) for run in runs)]
    alike = set(both).difference(worse)
    print(
        f"{len(both)} ratios in both. At most {100 * (ALIKE - 1):.0f}% apart: "
        f"{len(alike.difference(marked))} of {len(both) - len(marked)} without a mark, "
        f"{len(alike.intersection(marked))} of {len(marked)} with one"
    )
    return set(worse) <= set(marked)


def publish(paths: Sequence[Path], root: Path) -> None:
    """Write docs/benchmarks.md, and the table of README.md if one of the runs was on a GPU."""
    print(write(paths, root / "docs"))
    for run in (load(path) for path in paths):
        if run.about["gpu"]:
            done = write_readme(run, root / "README.md")
            where = "it stands in docs/benchmarks.md under `In short`"
            print("README.md" if done else f"README.md has no marks for the table; {where}")
            break


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md from benchmark results.")
    parser.add_argument(
        "files", nargs="*", type=Path, help="results (default: the newest, with a GPU and without)"
    )
    store = parser.add_mutually_exclusive_group()
    store.add_argument("--keep", type=Path, metavar="FILE", help="store a run's JSON instead")
    store.add_argument("--add", type=Path, metavar="FILE", help="add its rows to the stored JSON")
    store.add_argument("--gpu-day", type=Path, metavar="FILE", help="store it, then write the page")
    store.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs' ratios")
    parser.add_argument("--folder", type=Path, help="write there, as if it were this repository")
    options = parser.parse_args()
    root = options.folder or ROOT
    results = root / "benchmarks" / "results"
    try:
        if options.keep:
            print(keep(options.keep, results))
        elif options.add:
            print(add(options.add, results))
        elif options.compare:
            return 0 if compare(*options.compare) else 1
        elif options.gpu_day:
            print(keep(options.gpu_day, results))
            publish(newest(results), root)
        else:
            publish(options.files or newest(results), root)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
