"""What a bulk job reports: counts, throughput, the time of each stage, failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mdssd.system.text import plural, printable

# The report holds so many failures; the results hold all.
_MOST_FAILURES = 1000


@dataclass
class BulkReport:
    """The result of `bulk.detect`.

    Attributes:
        out: the folder of the results.
        images, detections: how many images were read, and the boxes found in them.
        failed: how many images could not be read.
        failures: (file, reason) for the first 1,000 of them.
        before: how many images earlier runs of this job had done.
        total: how many images the job has.
        workers: the number of processes.
        wall: seconds that the run took.
        seconds: seconds per stage, summed over the processes: decode, preprocess, network,
            detection_output.
        busy: seconds that the processes spent on shards, in all.
        cpu: seconds of processors that they used for it, without the processes that read for them.
        guesses: what reading images had to guess: in how many, and the first of them.
        left_out: a line for each folder that holds more than images.
    """

    out: str
    total: int = 0
    before: int = 0
    images: int = 0
    detections: int = 0
    failed: int = 0
    workers: int = 0
    wall: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    guesses: dict[str, tuple[int, str]] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many images are done, those of earlier runs included."""
        return self.before + self.images + self.failed

    def add(self, summary: Mapping[str, Any]) -> list[str]:
        """Add the summary of a shard. Return the reasons of its failures."""
        self.images += summary["images"]
        self.detections += summary["detections"]
        self.failed += len(summary["failed"])
        self.busy += summary["wall"]
        self.cpu += summary["cpu"]
        room = _MOST_FAILURES - len(self.failures)
        self.failures += [(file, reason) for file, reason in summary["failed"][:room]]
        for stage, seconds in summary["seconds"].items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        for guess, (count, first) in summary["guesses"].items():
            before, name = self.guesses.get(guess, (0, first))
            self.guesses[guess] = (before + count, name)
        return [reason for _, reason in summary["failed"]]

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def table(self) -> str:
        """Return the counts, the throughput, the time per stage and the folder as text."""
        count = self.images + self.failed
        lines = [f"{plural(self.detections, 'detection')} in {plural(self.images, 'image')}"]
        if self.failed:
            lines[0] += f", {self.failed} failed"
        if self.before:
            lines.append(f"{plural(self.before, 'image')} of {self.total} were done before")
        if self.images:
            each = {**self.seconds, "other": self.busy - sum(self.seconds.values())}
            lines += ["", f"{'stage':<17}{'ms/image':>10}{'share':>8}"]
            for stage, seconds in [*each.items(), ("total", self.busy)]:
                share = seconds / self.busy if self.busy else 0.0
                lines.append(f"{stage:<17}{1000 * seconds / count:>10.2f}{share:>8.0%}")
            rate = count / self.wall if self.wall else 0.0
            processes = "process" if self.workers == 1 else "processes"
            lines += ["", f"{rate:.1f} images per second by {self.workers} {processes}"]
            lines[-1] += f", {1000 * self.cpu / count:.1f} ms of a processor per image"
        for guess, (times, first) in self.guesses.items():
            lines.append(f"{times} times: {first}: {guess}" if times > 1 else f"{first}: {guess}")
        lines.append(f"results in {self.out}/part-*.parquet, failures also in report.json")
        return "\n".join(map(printable, lines))
