"""Compare float32 with int8 by the processor's time, which other processes disturb least.

    python -m benchmarks.int8

Prints the table of docs/int8.md: of the network alone and from a photograph in memory to its boxes,
in OpenVINO on one thread, the least of several rounds in which the sides take turns. It needs the
packages of the extra int8. `--wall` adds a table of the time on two threads, which counts the
waiting for a core: the medians of the rounds and of their ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import mdssd
from benchmarks.forms import _LITE, ENVIRONMENT, Form, _markdown, int8_form, leave_candidates
from mdssd.models.folding import fold_batch_norm

FORMS = {
    "light300": Form("mdssd300", _LITE, 0.25, True),
    "mdssd300-0.25": Form("mdssd300", width=0.25),
    "mdssd300": Form("mdssd300"),
    "mdssd512": Form("mdssd512"),
}
SIDES = ("float32", "int8")
PARTS = ("network", "photograph to boxes")


def make_networks(form: Form) -> tuple[nn.Module, nn.Module]:
    """Return the network in float32 and in int8."""
    model = form.build()
    fold_batch_norm(model)
    size: Any = model.input_size
    images = 60 * torch.randn(1, 3, size, size)
    leave_candidates(model, images)
    return model, int8_form(model, images)


def make_calls(
    networks: tuple[nn.Module, nn.Module],
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return the calls to compare, by part and side, for as many threads as PyTorch has now."""
    photo = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    size: Any = networks[0].input_size
    pixels = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for side, network in zip(SIDES, networks, strict=True):
        detector = mdssd.Detector(network, device="cpu", runtime="openvino", batch_size=1)
        runtime: Any = detector._runtime
        calls["network", side] = partial(runtime._pipeline.network, pixels)
        calls["photograph to boxes", side] = partial(detector, photo)
    for call in calls.values():
        call()
    return calls


def measure(
    calls: dict[tuple[str, str], Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each call in each round."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = clock()
            call()
            times[key].append(clock() - start)
    return times


def row(form: Form, times: dict[tuple[str, str], list[float]], least: bool) -> list[str]:
    cells = [form.model, form.trunk, f"{form.width:g}", "light" if form.light else "full"]
    for part in PARTS:
        before, after = (times[part, side] for side in SIDES)
        pick = min if least else statistics.median
        ratios = [b / a for b, a in zip(before, after, strict=True)]
        gain = min(before) / min(after) if least else statistics.median(ratios)
        cells += [f"{1e3 * pick(before):.1f}", f"{1e3 * pick(after):.1f}", f"{gain:.2f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--wall", action="store_true", help="also the time on two threads")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        # glibc and OpenMP read their settings when a process starts.
        command = [sys.executable, "-m", "benchmarks.int8", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})
    head = ["model", "trunk", "width", "layers"]
    head += [t for p in PARTS for t in (f"{p}: float32, ms", "int8, ms", "times as fast")]
    tables: dict[bool, list[list[str]]] = {True: [], False: []}
    for name in options.forms:
        print(name, file=sys.stderr, flush=True)
        networks = make_networks(FORMS[name])
        for least in (True, False) if options.wall else (True,):
            torch.set_num_threads(1 if least else 2)
            clock = time.process_time if least else time.perf_counter
            times = measure(make_calls(networks), options.rounds, clock)
            tables[least].append(row(FORMS[name], times, least))
            print(tables[least][-1], file=sys.stderr, flush=True)
    for rows in filter(None, tables.values()):
        print(_markdown(head, rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
