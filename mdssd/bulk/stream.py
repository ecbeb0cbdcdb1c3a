"""Results of images from a Ray cluster, in order: for the evaluation of a data set."""

from __future__ import annotations

import os
import pickle
from collections.abc import Generator, Iterable
from typing import Any

import torch

from mdssd.bulk.cluster import check_ray, running, sized, start_record, taken
from mdssd.bulk.job import load_model
from mdssd.bulk.record import TRIES, Begun
from mdssd.bulk.settings import Pool
from mdssd.data import DataError
from mdssd.detection.detector import Detector
from mdssd.detection.reading import Image, ImageFile, Streamed, name_of
from mdssd.system.memory import keep_memory

_BATCHES = 8  # that a process takes at once


class RayStream:
    """Does what `Detector.stream` does, in the processes of a Ray cluster.

    Args:
        checkpoint: as in `Detector.from_checkpoint`.
        pool: the processes.
        timings: receives the seconds per stage, as of one process.
        options: the keywords of `Detector`.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        pool: Pool,
        timings: dict[str, float],
        **options: Any,
    ) -> None:
        check_ray(pool.address)
        self._checkpoint, self._pool, self._timings = checkpoint, pool, timings
        self._options = options

    def __call__(
        self, images: Iterable[Image], *, batch_size: int, workers: int | None = None
    ) -> Generator[Streamed, None, None]:
        """Yield the result of each image, in order.

        The images are the files of all nodes. Batches hold the same images as those of one process,
        so the results have the same bits, unless images cannot be read.

        Args:
            images: `ImageFile`s.
            batch_size: how many images go through the network at once.
            workers: is not used; `Pool.readers` has its place.

        Raises:
            ValueError: an image is no file.
            OSError: a process has failed, or was killed twice with the same images.
        """
        every = list(images)
        if not all(isinstance(image, ImageFile) for image in every):
            raise ValueError("evaluate: engine: on Ray, expected a data set of image files")
        each = _BATCHES * batch_size
        shards = [every[k : k + each] for k in range(0, len(every), each)]
        options = {**self._options, "batch_size": batch_size}
        model, how, _, pool = load_model(self._checkpoint, options, self._pool)
        with running(pool.address):
            import ray

            pool = sized(pool, len(shards))
            arguments = (ray.put(model), how, pool, start_record())
            items = [{"shard": k, "images": pickle.dumps(s)} for k, s in enumerate(shards)]
            rows = taken(items, StreamWorker, arguments, pool, ordered=True)
            for shard, row in zip(shards, rows, strict=True):
                results, seconds, error = pickle.loads(row["results"])
                if error:
                    raise OSError(f"evaluate: a process ended with {error}")
                for stage, spent in seconds.items():
                    self._timings[stage] += spent / (pool.workers or 1)
                for image, (size, found, fault, guess) in zip(shard, results, strict=True):
                    reason = DataError(fault) if fault else None
                    yield Streamed(image, size, found, error=reason, guess=guess)


class StreamWorker:
    """Detects in images, and returns what it finds.

    Args:
        model: a reference to the network.
        how: the keywords of `Detector`.
        pool: the processes.
        record: the handle of the `Record`.
    """

    def __init__(self, model: Any, how: dict[str, Any], pool: Pool, record: Any) -> None:
        import ray

        torch.set_num_threads(pool.threads)
        keep_memory()
        self._get, self._record, self._pool = ray.get, record, pool
        self._detector = Detector(ray.get(model), device=pool.device, **how)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Return the results of shards: what was found, the seconds per stage, an error."""
        pairs = zip(batch["shard"], batch["images"], strict=True)
        return {"results": [pickle.dumps(self._take(int(n), pickle.loads(i))) for n, i in pairs]}

    def _take(self, number: int, images: list[Image]) -> tuple[list[Any], dict[str, float], str]:
        begun = Begun(*self._get(self._record.begin.remote(number)))
        if begun.given_up:
            names = f"{name_of(images[0], '')} to {name_of(images[-1], '')}"
            return [], {}, f"{names}: the process that worked on them was killed, in {TRIES} tries"
        self._get(self._record.trying.remote(number, 0))
        before = dict(self._detector.timings)
        try:
            with self._detector.separate_stages():
                results = [
                    (r.size, r.found, "" if r.error is None else str(r.error), r.guess)
                    for r in self._detector.stream(images, workers=self._pool.readers)
                ]
        except (OSError, RuntimeError, ValueError) as error:
            return [], {}, " ".join(f"{type(error).__name__}: {error}".split())
        self._get(self._record.done.remote(number))
        after = self._detector.timings
        return results, {stage: after[stage] - before[stage] for stage in after}, ""
