"""What a bulk job is told: how to detect, and in which processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mdssd.data.images import ImageLimits


@dataclass(frozen=True)
class Pool:
    """The processes that detect, and their cluster.

    Attributes:
        address: the cluster, as `ray.init` takes it; "auto" for that of this machine. None starts
            Ray here, unless RAY_ADDRESS is set. If Ray runs in this process, it is used.
        workers: the most processes; None for as many as the cluster has room for.
        threads: the CPU threads of each.
        readers: processes that read images for each of them. Each occupies a core, as a thread.
        device: "cpu", or "cuda" for a GPU for each process; None: "cuda" if the cluster has one.
        backend: of the operators; None for the fastest.

    Raises:
        ValueError: a number is out of range, or the device is another one.

    Example:
        >>> from mdssd.bulk import Pool
        >>> Pool(workers=8, threads=2).cores
        2
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    readers: int = 0
    device: str | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("threads", 1), ("readers", 0)):
            count = getattr(self, name)
            if count is not None and count < least:
                raise ValueError(f"Pool: {name}: expected {least} or more, got {count}")
        if self.device not in (None, "cpu", "cuda"):  # Ray chooses which GPU a process sees
            raise ValueError(f"Pool: device: expected 'cpu' or 'cuda', got {self.device!r}")

    @property
    def cores(self) -> int:
        """The cores that each process occupies."""
        return self.threads + self.readers


@dataclass(frozen=True)
class Settings:
    """How a job detects.

    Attributes:
        out: the folder of the results.
        detector: the keywords of `Detector`.
        score_threshold, labels: the least score, and the labels, of what is written.
        limits, upright: see `Detector`.
        image_column: the column of a Parquet file with the images; None for the only binary one.
        pool: the processes.
    """

    out: str
    detector: dict[str, Any]
    score_threshold: float
    labels: list[int]
    limits: ImageLimits = field(default_factory=ImageLimits)
    upright: bool = True
    image_column: str | None = None
    pool: Pool = Pool()
