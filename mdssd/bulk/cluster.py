"""Ray: starting or joining it, and a pool of workers that takes shards."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mdssd.bulk.plan import Shard, shard_text
from mdssd.bulk.record import Record
from mdssd.bulk.settings import Pool
from mdssd.system.text import first_line

_OBJECT_STORE = 500 << 20  # bytes, of a Ray that is started here
_ANSWER = 10  # seconds within which the node at an address must answer
_DEATHS_AT_START = 5  # so many processes in a row may die before they take a shard
NEEDS = "detect: engine: 'ray' needs Ray: pip install 'mdssd[ray]'"


def check_ray(address: str | None) -> None:
    """Raise ImportError if Ray is not installed; check the address unless Ray runs here."""
    try:
        import ray.data
    except ImportError:
        raise ImportError(NEEDS) from None
    if not ray.is_initialized():
        check_address(address)


def check_address(address: str | None) -> None:
    """Check that something answers at the address of a cluster, for which Ray tries for minutes.

    Raises:
        ValueError: it is no address.
        ConnectionError: nothing answers.
    """
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).rpartition(":")
    if "://" in str(address):
        raise ValueError(
            f"detect: ray_address: {address}: expected HOST:PORT or auto; Ray's client is not "
            "supported: start the command on a node of the cluster, as `ray job submit` does"
        )
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"detect: ray_address: expected HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except OSError as error:
        raise ConnectionError(_no_ray(address, error)) from None


def _no_ray(address: str | None, error: Exception) -> str:
    return f"detect: ray_address: {address}: no Ray there ({first_line(error)})"


@contextmanager
def running(address: str | None) -> Iterator[None]:
    """Use the Ray that runs in this process, or join or start one for the time of the block.

    Args:
        address: of a cluster, or "auto" for that of this machine. None starts Ray on this machine,
            unless the environment variable RAY_ADDRESS names a cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # Otherwise Ray writes a line of advice to its own developers for each process that it starts.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    joins = bool(address or os.environ.get("RAY_ADDRESS"))
    if joins:
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # one try of 40 seconds
        options["address"] = address
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": _OBJECT_STORE}
    try:
        ray.init(**options)
    except Exception as error:  # Ray has no type of its own for a start that fails
        ray.shutdown()
        if not joins:
            raise ConnectionError(
                f"detect: engine: Ray did not start ({first_line(error)})"
            ) from None
        raise ConnectionError(
            f"{_no_ray(address, error)}; a cluster with tokens needs RAY_AUTH_MODE=token"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def sized(pool: Pool, shards: int) -> Pool:
    """Return a pool with its device, and with no more processes than there is room and work for.

    Raises:
        ValueError: the cluster has no room for one process.
    """
    import ray

    there = ray.cluster_resources()
    device = pool.device or ("cuda" if there.get("GPU") else "cpu")
    room = int(there.get("CPU", 0) // pool.cores)
    if device != "cpu":
        room = min(room, int(there.get("GPU", 0)))
    if room < 1:
        needed = f"{pool.cores} CPU" + " and 1 GPU" * (device != "cpu")
        raise ValueError(
            f"detect: pool: each process needs {needed}, and the cluster has "
            f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU"
        )
    workers = max(1, min(pool.workers or room, room, shards))
    return replace(pool, device=device, workers=workers)


def start_record(before: Mapping[int, Mapping[int, int]] | None = None) -> Any:
    """Start the process with the `Record`, on this node, and return its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Record).options(num_cpus=0, scheduling_strategy=here).remote(before)


def summaries(
    shards: Sequence[Shard], worker: type, arguments: Sequence[Any], pool: Pool
) -> Iterator[dict[str, Any]]:
    """Let a pool of processes take shards, and yield the summary of each when it is done.

    Args: those of `taken`.
    """
    items = [{"shard": shard_text(shard)} for shard in shards]
    for row in taken(items, worker, arguments, pool):
        yield json.loads(row["summary"])


def taken(
    items: Sequence[dict[str, Any]],
    worker: type,
    arguments: Sequence[Any],
    pool: Pool,
    *,
    ordered: bool = False,
) -> Iterator[dict[str, Any]]:
    """Let a pool of processes take items, one at a time, and yield the row that each becomes.

    Args:
        items: rows.
        worker: the class whose objects turn a batch of one item into a batch of one row.
        arguments: those of its constructor.
        pool: the processes, see `sized`.
        ordered: whether the rows come in the order of the items; otherwise as they are done.

    Raises:
        OSError: the processes cannot start, or Ray has failed.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    with _settings(DataContext.get_current(), ordered):
        rows = ray.data.from_items(list(items), override_num_blocks=len(items)).map_batches(
            worker,
            batch_size=1,
            fn_constructor_args=tuple(arguments),
            compute=ActorPoolStrategy(
                min_size=1,
                max_size=pool.workers,
                initial_size=pool.workers,
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=pool.cores,
            num_gpus=0 if pool.device == "cpu" else 1,
        )
        try:
            yield from rows.iter_rows()
        except RayError as error:  # its text has many lines; the last may name an exception
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[-1] if "Error: " in lines[-1] else lines[0]
            raise OSError(f"a process of Ray ended: {reason}") from None


@contextmanager
def _settings(context: Any, ordered: bool) -> Iterator[None]:
    """Within the block, let Ray Data show nothing, and replace processes that die as they start."""
    chosen = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_consecutive_actor_init_deaths": _DEATHS_AT_START,
    }
    before = {name: getattr(context, name) for name in chosen}
    logger = logging.getLogger("ray.data")
    level, order = logger.level, context.execution_options.preserve_order
    try:
        context.execution_options.preserve_order = ordered
        for name, value in chosen.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = order
        logger.setLevel(level)
