"""Several processes that work as one: what torchrun starts, and what they tell each other.

Without torchrun there is one process, and every function here gives what one process needs.
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
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process in its group, from 0."""
    return dist.get_rank() if running() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if running() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def processes_here() -> int:
    """How many processes of the group share this machine, by torchrun's word."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if running() else 1


def add_up(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place, to the same bits in each; gives it back."""
    if running():
        dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool) -> bool:
    """Whether it is set in one of the processes or more."""
    return bool(add_up(torch.tensor(int(flag)))) if running() else flag


def from_main(value: T) -> T:
    """The main process's value (anything that pickles), in every process."""
    if not running():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """Every process's value in the order of their ranks, in the main process; [] elsewhere."""
    if not running():
        return [value]
    values: Any = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def wait_for_all() -> None:
    """Return when every process has come here."""
    if running():
        dist.barrier()


def part(items: Sequence[T]) -> Sequence[T]:
    """This process's share of `items`: consecutive ones, the first ranks have one more."""
    each, more = divmod(len(items), world_size())
    start = rank() * each + min(rank(), more)
    return items[start : start + each + (rank() < more)]


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started for the time of the block; gives the own device.

    Does nothing without torchrun, or where it started a single process. GPUs talk through NCCL
    and take one process each, the one of its number on its machine; what they need to agree on
    besides goes through gloo, as all does on CPUs.

    The first process to fail raises its error. Those that fail after it, mostly because it is
    gone, have nothing to add and exit silently.

    Raises:
        SystemExit: another process has failed.
        ValueError: the device is neither "cpu" nor "cuda", or there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    store, this, count = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart, and with it what the processes before had put there.
    store = dist.PrefixStore(f"mdssd/{os.environ.get(_RESTARTS, 0)}", store)
    try:
        device = _own_device(device)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=this, world_size=count)
        yield device
        wait_for_all()
    except BaseException as error:
        # The group is left as it is: NCCL would wait for what a process that is gone had to send.
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
    except RuntimeError:  # the store went with the process that held it
        return False


def is_restart(out_dir: Path) -> bool:
    """Whether torchrun has started this job anew (--max-restarts) after it had begun in `out_dir`.

    A run that another job left there is none: what stopped this job may have been that it is there.
    """
    if os.environ.get(_RESTARTS, "0") == "0":
        return False
    path = out_dir / _JOB_FILE
    return path.exists() and path.read_text(encoding="utf-8") == _job()


def note_job(out_dir: Path) -> None:
    """Write down that this job has begun in `out_dir`, where torchrun may start it anew."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        with atomic_write(out_dir / _JOB_FILE) as file:
            file.write(_job())


def _job() -> str:
    """What stays the same for the restarts of a job and differs for another one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # "none" is the id of every job that was given none; then the process that restarts this one.
    return f"process {os.getppid()} of {platform.node()}" if name == "none" else f"job {name}"
