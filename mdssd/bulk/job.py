"""`bulk.detect`: a job on a Ray cluster, which can be killed and continued."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mdssd import ops
from mdssd.bulk.cluster import check_ray, running, sized, start_record, summaries
from mdssd.bulk.places import Place, is_address
from mdssd.bulk.plan import FAULT, Part, Shard, find_parts, into_shards, plan_bytes, read_plan
from mdssd.bulk.record import BEGUN, read_begun
from mdssd.bulk.report import BulkReport
from mdssd.bulk.settings import Pool, Settings
from mdssd.bulk.windows import Cutting, file_of, folder_of, is_part
from mdssd.bulk.worker import Worker
from mdssd.data.images import ImageLimits
from mdssd.data.tiles import Tiling
from mdssd.detection.detector import Detector
from mdssd.detection.openvino import openvino_core
from mdssd.detection.quantized import load_network, runtime_of
from mdssd.detection.runtimes import check_runtime
from mdssd.models.folding import fold_batch_norm
from mdssd.system.progress import progress_bar
from mdssd.system.stop import Interrupted, StopRequest, Terminated
from mdssd.system.text import some
from mdssd.weights.checkpoint_json import find_checkpoint, read_meta

_JOB, _PLAN, _REPORT = "job.json", "plan.jsonl", "report.json"
_FORMAT = "mdssd bulk job"
_ALL = Pool()


def detect(
    checkpoint: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    pool: Pool = _ALL,
    score_threshold: float = 0.5,
    classes: Sequence[str] | None = None,
    shard_images: int = 256,
    resume: bool = False,
    recursive: bool = False,
    image_column: str | None = None,
    limits: ImageLimits | None = None,
    upright: bool = True,
    progress: bool = True,
    **options: Any,
) -> BulkReport:
    """Detect objects in any number of images on a Ray cluster, and write Parquet files.

    Each process takes a shard of images at a time and writes its results as one file, whole or not
    at all. An image whose process has ended twice while it worked on this image alone is given up.
    SIGTERM and Ctrl-C let the shards under way be finished.

    Args:
        checkpoint: as in `Detector.from_checkpoint`. It is read here, and each node gets it once.
        sources: image files, folders, glob patterns, "@list.txt", Parquet files with a column of
            image files, tar files of images such as "shards-{0000..0099}.tar", folders of such
            files; or addresses of pyarrow or fsspec, such as "s3://bucket/photos/". All nodes must
            reach them under the same name.
        out_dir: a folder or an address that all nodes reach. It receives `part-*.parquet`, the
            results; `job.json` and `plan.jsonl`, by which the job is continued; `report.json`.
        pool: the processes that detect.
        score_threshold, classes, recursive, progress: as in `detection.files.detect`.
        shard_images: how many images are in a shard. A row group of a Parquet file is not divided.
        resume: continue the job in `out_dir` as it was planned, or begin it if there is none.
        image_column: the column of Parquet files with the images; None for the only one of bytes.
        limits, upright: see `Detector`.
        options: further keywords of `Detector`, such as `tile`, `batch_size` and `runtime`.

    Returns:
        A `BulkReport`; `print(report.table())` shows it.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no image, `out_dir` holds a job and `resume` is not set, or the job
            there has other settings; an argument is wrong.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the message says how many images were done.
        OSError: there is no cluster, or a folder or a storage cannot be read or written.

    Example:
        >>> from mdssd import bulk
        >>> def find(photos: str) -> None:
        ...     report = bulk.detect("runs/mine", [photos], "found", pool=bulk.Pool(workers=2))
        ...     print(report.table())
    """
    check_ray(pool.address)
    _check_arguments(sources, score_threshold, shard_images)
    place = Place(_full(out_dir))
    model, how, tiling, pool = load_model(checkpoint, options, pool)
    labels, limits = _labels(how["classes"], classes), limits or ImageLimits()
    what = (place.name, how, score_threshold, labels, limits, upright, image_column, pool)
    settings, report = Settings(*what), BulkReport(place.name)
    facts = {"checkpoint": _digest(checkpoint), **_facts(settings)}
    cut = Cutting(tiling, limits, upright, shard_images).parts if tiling else None
    parts = partial(
        find_parts, sources, recursive=recursive, out=place.name, cut=cut, most=shard_images
    )
    shards = _plan(place, facts, resume, parts, shard_images, report)
    if remaining := _remaining(place, shards, report):
        with running(pool.address):
            _run(remaining, model, settings, report, progress)
    for part in {part.home: part for shard in shards for part in shard.parts if part.of}.values():
        place.remove(folder_of(part))
    place.remove(BEGUN)
    place.write(_REPORT, report.to_json().encode())
    return report


def load_model(
    checkpoint: str | os.PathLike[str], options: Mapping[str, Any], pool: Pool
) -> tuple[torch.nn.Module, dict[str, Any], Tiling | None, Pool]:
    """Return the network of a checkpoint, the keywords of its `Detector`, its tiles and the pool.

    The pool gets a device if the runtime has only one.
    """
    model, meta = load_network(checkpoint)
    fold_batch_norm(model.eval())
    how = {"classes": list(meta["classes"]), "mean": tuple(meta["mean"]), **options}
    # What is wrong with the keywords is said here, apart from what needs the device of a worker.
    here = Detector(model, **{k: v for k, v in how.items() if k not in ("runtime", "dtype")})
    runtime = runtime_of(model, how.get("runtime", "eager"))
    if runtime == "openvino":
        openvino_core()  # raises if OpenVINO is missing
        pool = replace(pool, device=pool.device or "cpu")
    if pool.device is not None:
        check_runtime(runtime, torch.device(pool.device), how.get("dtype") or torch.float32)
    return model, how, here.tiling, pool


def _run(
    shards: Sequence[Shard],
    model: torch.nn.Module,
    settings: Settings,
    report: BulkReport,
    progress: bool,
) -> None:
    """Let the processes of the pool take the shards, and add up what they report."""
    import ray

    pool = sized(settings.pool, len(shards))
    report.workers = pool.workers or 0
    if pool.device == "cpu":  # errors of the runtime and the backend belong here
        with ops.backend(pool.backend) if pool.backend else nullcontext():
            Detector(deepcopy(model), device="cpu", **settings.detector)
    place = Place(settings.out)
    Place(f"{place.name}/{BEGUN}").create()
    record = start_record(read_begun(place, [shard.number for shard in shards]))
    began = time.perf_counter()
    arguments = (ray.put(model), replace(settings, pool=pool), record)
    with (
        progress_bar(
            desc="detect",
            total=report.total,
            unit="image",
            initial=report.before,
            visible=progress,
        ) as bar,
        StopRequest() as stop,
    ):
        for line in report.left_out if progress else ():
            bar.write(line)
        ended, fault = False, ""
        for summary in summaries(shards, Worker, arguments, pool):
            if summary["done"]:
                reasons = report.add(summary)
                for reason in reasons if progress else ():
                    bar.write(f"failed: {reason}")
                bar.update(summary["images"] + len(reasons))
            fault = fault or summary.get("error", "")
            if (stop.asked or fault) and not ended:
                ray.get(record.end.remote())
                ended = True
    report.wall = time.perf_counter() - began
    note = f"{report.done} of {report.total} images done; --resume continues"
    if fault:
        raise OSError(f"detect: a process ended with {fault}; {note}")
    if stop.asked and report.done < report.total:
        raise Interrupted(note) if isinstance(stop.error(), Interrupted) else Terminated(note)


def _remaining(place: Place, shards: Sequence[Shard], report: BulkReport) -> list[Shard]:
    """Return the shards that have no results yet, and report how many images there are."""
    there = set(place.names())
    report.total = sum(shard.images for shard in shards)
    report.before = sum(shard.images for shard in shards if shard.file in there)
    remaining = [shard for shard in shards if shard.file not in there]
    homes = {part.home for shard in remaining for part in shard.parts if part.of}
    found = {home: set(Place(f"{place.name}/windows-{home:08}").names()) for home in homes}
    # The windows that are done, apart from the first, whose shard joins them all if it is the last.
    return [
        shard
        for shard in remaining
        if not shard.parts[0].group
        or not is_part(shard.parts[0])
        or file_of(shard.parts[0]) not in found[shard.parts[0].home]
    ]


def _plan(
    place: Place,
    facts: Mapping[str, Any],
    resume: bool,
    find: Callable[[], tuple[list[Part], list[str]]],
    shard_images: int,
    report: BulkReport,
) -> list[Shard]:
    """Return the shards of the job, and store the plan of a new one."""
    there = set(place.names())
    if _JOB in there:
        if not resume:
            raise ValueError(
                f"detect: out_dir: {place.name} holds a job; continue it by --resume "
                "(resume=True), or choose another folder"
            )
        _check_same(place, json.loads(place.read(_JOB)), facts)
        return read_plan(place.read(_PLAN))
    if any(name.endswith(".parquet") for name in there):
        raise ValueError(
            f"detect: out_dir: {place.name} holds Parquet files of something else; choose another "
            "folder"
        )
    parts, report.left_out = find()
    if all(part.kind == FAULT for part in parts):
        reasons = some([part.reason for part in parts]) or "no source was given"
        raise ValueError(f"detect: no image found: {reasons}")
    shards = into_shards(parts, shard_images)
    place.create()
    place.write(_PLAN, plan_bytes(shards))
    # The job exists once this file does, so it is the last one.
    place.write(_JOB, (json.dumps({"format": _FORMAT, **facts}, indent=1) + "\n").encode())
    return shards


def _check_same(place: Place, stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Check that a job was begun with the same settings."""
    if stored.get("format") != _FORMAT:
        raise ValueError(f"detect: out_dir: {place.name}/{_JOB} is no job of mdssd")
    for name, value in json.loads(json.dumps(facts)).items():
        if stored.get(name) != value:
            raise ValueError(
                f"detect: resume: the job in {place.name} was begun with {name} "
                f"{stored.get(name)!r}, got {value!r}"
            )


def _facts(settings: Settings) -> dict[str, Any]:
    """Return the settings on which results depend, as JSON holds them."""
    how = {k: str(v) if isinstance(v, torch.dtype) else v for k, v in settings.detector.items()}
    return {
        **how,
        "score_threshold": settings.score_threshold,
        "labels": settings.labels,
        "max_pixels": settings.limits.max_pixels,
        "accept_damage": settings.limits.accept_damage,
        "upright": settings.upright,
        "image_column": settings.image_column,
    }


def _full(folder: str | os.PathLike[str]) -> str:
    name = os.fspath(folder)
    return name.rstrip("/") if is_address(name) else str(Path(name).absolute())


def _digest(checkpoint: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the checkpoint's weights, which tells it from others."""
    return str(read_meta(find_checkpoint(checkpoint))["sha256"])


def _labels(names: Sequence[str], chosen: Sequence[str] | None) -> list[int]:
    unknown = [name for name in chosen or () if name not in names]
    if isinstance(chosen, str) or unknown:
        raise ValueError(f"detect: classes: expected some of {', '.join(names)}; got {chosen!r}")
    return [k for k, name in enumerate(names, 1) if chosen is None or name in chosen]


def _check_arguments(sources: Any, score_threshold: float, shard_images: int) -> None:
    if isinstance(sources, (str, os.PathLike)):
        raise TypeError(f"detect: sources: expected a list of paths, got {sources!r}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"detect: score_threshold: expected 0 to 1, got {score_threshold}")
    if shard_images < 1:
        raise ValueError(f"detect: shard_images: expected 1 or more, got {shard_images}")
