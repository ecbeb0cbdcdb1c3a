"""The rows of the benchmarks in files: read, stored in benchmarks/results, replaced."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdssd.system.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STATS = ("median", "mean", "iqr", "min", "max", "rounds")  # what a stored row has
PRETENDED = "pretended GPU"  # the name of the GPU of tools/pretend_gpu.py


@dataclass(frozen=True)
class Row:
    """A measured row, with times in seconds. `info` has everything that `measure` stored."""

    op: str
    row: str
    peer: str
    device: str
    dtype: str
    median: float
    mean: float
    rounds: int
    info: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        return key_of(self.info)

    @property
    def ours(self) -> bool:
        return self.peer.startswith("mdssd ")

    @property
    def in_tables(self) -> bool:
        """Whether the row belongs in a table: not part of a sweep, not one of the tests' sizes."""
        return "axis" not in self.info and not self.row.startswith("test size ")


@dataclass(frozen=True)
class Run:
    """The contents of a JSON file. `about` has the facts of machine.py.

    `day` has the steps and profiles of tools/gpu_day.py, and is empty for the file of another run.
    """

    name: str
    about: dict[str, Any]
    date: str
    rows: list[Row]
    day: dict[str, Any] = field(default_factory=dict)


def key_of(info: dict[str, Any]) -> tuple[str, ...]:
    """Return what identifies a row and its side among those of one machine."""
    return tuple(info[name] for name in ("op", "row", "peer", "device", "dtype"))


def load(path: Path) -> Run:
    """Read a run. Raises ValueError if the file is not the JSON of these benchmarks."""
    data = json.loads(path.read_text())
    if "benchmarks" not in data or "mdssd" not in data:
        raise ValueError(f"{path}: not the JSON of `pytest benchmarks/ --benchmark-json`")
    rows = [
        Row(
            *key_of(entry["extra_info"]),
            *(entry["stats"][key] for key in ("median", "mean", "rounds")),
            entry["extra_info"],
        )
        for entry in data["benchmarks"]
    ]
    return Run(path.stem, data["mdssd"], data["datetime"][:10], rows, data.get("day", {}))


def newest(folder: Path) -> list[Path]:
    """Return the latest run on a GPU, if there is one, and the latest without; by their dates."""
    dates: dict[bool, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text())
        if data.get("benchmarks") and "mdssd" in data:
            gpu = bool(data["mdssd"]["gpu"])
            dates[gpu] = max(dates.get(gpu, ("", path)), (data["datetime"], path))
    if not dates:
        raise ValueError(f"{folder}: holds no result of a benchmark run; `make bench` makes one")
    return [dates[gpu][1] for gpu in (True, False) if gpu in dates]


def refuse_pretended(about: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if a pretended GPU's figures would become a file of the repository."""
    folder = folder.resolve()
    inside = folder.is_relative_to(ROOT) and not folder.is_relative_to(ROOT / "build")
    if about["gpu"] == PRETENDED and inside:
        raise ValueError(
            f"{folder}: the figures of a {PRETENDED} are no results and stay out of it"
        )


def keep(path: Path, folder: Path) -> Path:
    """Store a run's JSON in `folder`, named after its machine, in a compact form.

    Each row is one line without the facts that all rows share. The times of single rounds and
    everything else that the report does not use are dropped.
    """
    run, data = load(path), json.loads(path.read_text())
    refuse_pretended(run.about, folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{machine_name(run.about)}.json"
    _write(data, target)
    return target


def add(path: Path, folder: Path) -> Path:
    """Add a run's rows to the stored file of its machine; they replace the same sides of a row.

    Its ceilings replace those of the same size or type.
    Each row records its run, with the versions that differ from those of the stored file.
    Raises ValueError if there is no stored file.
    """
    run, data = load(path), json.loads(path.read_text())
    refuse_pretended(run.about, folder)
    target = folder / f"{machine_name(run.about)}.json"
    if not target.exists():
        raise ValueError(f"{target}: no such file; --keep makes it")
    kept = json.loads(target.read_text())
    stored = kept["mdssd"]["versions"].items()
    newer = [f"{name} {v}" for name, v in run.about["versions"].items() if (name, v) not in stored]
    label = ", ".join([f"commit {run.about['commit'][:12]}", run.date, *newer])
    for entry in data["benchmarks"]:
        entry["extra_info"]["run"] = label
    new = {key_of(entry["extra_info"]) for entry in data["benchmarks"]}
    others = [entry for entry in kept["benchmarks"] if key_of(entry["extra_info"]) not in new]
    about = dict(kept["mdssd"])
    for ceiling, kind in (("copy", "bytes"), ("matmul", "dtype")):
        both = about[ceiling] + run.about[ceiling]
        newest = {(each["device"], each[kind]): each for each in both}
        about[ceiling] = [newest[key] for key in sorted(newest)]
    _write({**kept, "mdssd": about, "benchmarks": others + data["benchmarks"]}, target)
    return target


def _write(data: dict[str, Any], target: Path) -> None:
    lines = []
    for entry in data["benchmarks"]:
        known = (*data["mdssd"], "node")
        own = {k: v for k, v in entry["extra_info"].items() if k not in known}
        stats = {k: entry["stats"][k] for k in STATS}
        lines.append(json.dumps({"name": entry["name"], "extra_info": own, "stats": stats}))
    top = {key: data[key] for key in ("datetime", "mdssd", "day") if key in data}
    shared = json.dumps(top, indent=1)
    rows = ",\n".join(lines)
    with atomic_write(target) as file:
        file.write(f'{shared.removesuffix("}").rstrip()},\n "benchmarks": [\n{rows}\n ]\n}}\n')


def machine_name(about: dict[str, Any]) -> str:
    """Return a name such as "nvidia-h200" or "amd-epyc-9654-2-cores"."""
    name = about["gpu"] or f"{about['cpu']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "")).strip("-")


def number(value: float) -> str:
    """Format with three significant digits and no exponent: 0.0123, 1.68, 45.4, 3,348."""
    if value <= 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def write_between(page: Path, marks: tuple[str, str], lines: Sequence[str]) -> None:
    """Replace the lines between two marks of a page; the marks stay."""
    text = page.read_text()
    start = text.index(marks[0]) + len(marks[0])
    end = text.index(marks[1], start)
    with atomic_write(page) as file:
        file.write(text[:start] + "\n".join(["", *lines, ""]) + text[end:])
