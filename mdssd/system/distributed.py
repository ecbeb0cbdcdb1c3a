"""Training and evaluation in the processes that torchrun starts.

Without torchrun there is a single process, and every function here returns what it needs.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from mdssd.system.files import atomic_write
from mdssd.system.stop import TERMINATED, Terminated

_JOB_FILE = ".torchrun"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
T = TypeVar("T")


def running() -> bool:
    """Return whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process in its group, from 0."""
    return dist.get_rank() if running() else 0


def world_size() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size() if running() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    return rank() == 0


def processes_here() -> int:
    """Return the number of the group's processes on this machine, as torchrun states it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if running() else 1


def add_up(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place, and return it. All get the same bits."""
    if running():
        dist.all_reduce(tensor)
    return tensor


def any_of_each(*flags: bool) -> list[bool]:
    """Return for each flag whether it is true in at least one process."""
    return (add_up(torch.tensor(flags, dtype=torch.int64)) > 0).tolist()


def from_main(value: T) -> T:
    """Return the main process's value, which must pickle, in every process."""
    if not running():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """Return the values of all processes in order of rank; in other than the main process, []."""
    if not running():
        return [value]
    values: Any = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def wait_for_all() -> None:
    """Wait until every process has called this function."""
    if running():
        dist.barrier()


def part(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of `items`.

    Shares are consecutive. If they cannot be equal, the first ranks have one item more.

    Example:
        >>> from mdssd.system.distributed import part
        >>> part([1, 2, 3])  # a single process has them all
        [1, 2, 3]
    """
    each, more = divmod(len(items), world_size())
    start = rank() * each + min(rank(), more)
    return items[start : start + each + (rank() < more)]


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, and leave them at the end of the block.

    Without torchrun, or with one process, this yields `device` and does nothing else. On GPUs,
    process number k of a machine uses its GPU number k; tensors there go through NCCL. Everything
    else goes through gloo.

    The first process to fail raises its error. The others then mostly fail because it is gone, so
    they exit without a message.

    Args:
        device: "cpu", or "cuda" for one GPU per process.

    Yields:
        The device of this process, such as "cuda:1".

    Raises:
        SystemExit: another process has failed.
        ValueError: the device is neither "cpu" nor "cuda", or there are fewer GPUs than processes.

    Example:
        >>> from mdssd.system.distributed import process_group, world_size
        >>> with process_group("cpu") as device:
        ...     print(device, world_size())
        cpu 1
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    store, this, count = next(dist.rendezvous("env://"))
    # torchrun keeps its store through a restart, so each start needs keys of its own.
    store = dist.PrefixStore(f"mdssd/{os.environ.get(_RESTARTS, 0)}", store)
    try:
        device = _own_device(device)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=this, world_size=count)
        yield device
        wait_for_all()
    except BaseException as error:
        # Destroying the group could hang: NCCL would wait for a process that is gone.
        if _is_first_to_fail(store):
            raise
        raise SystemExit(TERMINATED if isinstance(error, Terminated) else 2) from error
    dist.destroy_process_group()


def _own_device(device: str) -> str:
    if device == "cpu":
        return device
    if device != "cuda":
        raise ValueError(
            f"--device: expected cpu or cuda with torchrun, where each process takes its own GPU; "
            f"got {device}"
        )
    own, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= count:
        raise ValueError(
            f"torchrun: expected at most one process per GPU, got "
            f"{os.environ['LOCAL_WORLD_SIZE']} processes for {count}"
        )
    torch.cuda.set_device(own)
    return f"cuda:{own}"


def _is_first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:  # the process that held the store is gone
        return False


def is_restart(out_dir: Path) -> bool:
    """Return whether torchrun has restarted this job (--max-restarts) after it began in `out_dir`.

    Returns False for a run left by a different job: this job may have stopped precisely because
    that run was there.
    """
    if os.environ.get(_RESTARTS, "0") == "0":
        return False
    path = out_dir / _JOB_FILE
    return path.exists() and path.read_text(encoding="utf-8") == _job()


def note_job(out_dir: Path) -> None:
    """If torchrun may restart this job, record in `out_dir` that the job has begun there."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        with atomic_write(out_dir / _JOB_FILE) as file:
            file.write(_job())


def _job() -> str:
    """Return a name that is the same after a restart and different for another job."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # torchrun's id of a job without a name is "none". The parent process, which restarts this
    # one, then tells jobs apart.
    return f"process {os.getppid()} of {platform.node()}" if name == "none" else f"job {name}"
