"""Compare the forms of SSD and MDSSD on a processor: trunks, widths, light and full layers.

    python -m benchmarks.forms --out docs/forms.md

Writes the parameters, the multiply-accumulates (MACs), and the time from a photograph in memory to
its boxes in PyTorch and in OpenVINO, in float32 and, with the packages of the extra int8, in int8,
on two threads. The sides take turns (`benchmarks/turns.py`). `--parts` prints instead where the
light MDSSD300 spends its time.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mdssd
from benchmarks.machine import ALLOCATOR, allocator_set, cpu_name, facts, run_before_others
from benchmarks.stored import ROOT
from benchmarks.turns import Side, Times, Turns, median, ratio
from mdssd.data import Preprocess
from mdssd.detection.export import quiet_exporters
from mdssd.detection.onnx import network_proto
from mdssd.detection.quantized import QuantizedNetwork
from mdssd.models.folding import fold_batch_norm
from mdssd.system.files import atomic_write

CLASSES = 21
CANDIDATES = 1500  # scores above 0.01 in an image, as in a trained network
PAGE = ROOT / "docs/forms.md"
# What `python -m benchmarks.light_accuracy` stored, and the names of its data in the tables.
ACCURACY = ROOT / "docs/light-accuracy.json"
DATA = {"bccd": "BCCD", "cars": "KIT AIS, cars", "pcb": "DeepPCB"}
STREAM = 0.02  # seconds of untimed calls before a timed one, as in a stream of images


class Form(NamedTuple):
    """A form of a network. Of the full width there is no batch normalisation, as in the papers."""

    model: str
    trunk: str = "vgg16"
    width: float = 1.0
    light: bool = False

    def build(self) -> mdssd.models.SingleShotDetector:
        torch.manual_seed(0)
        if self == SSDLITE:
            from benchmarks.peers.ssdlite import SSDLite320

            return cast(Any, SSDLite320(CLASSES)).eval()
        options: dict[str, Any] = {"trunk": self.trunk, "width": self.width, "light": self.light}
        return mdssd.create(self.model, CLASSES, batch_norm=self.width < 1, **options).eval()


LITE0 = "efficientnet_lite0"
SSDLITE = Form("torchvision's ssdlite320", "mobilenet_v3_large", light=True)
# The first of each size is the base of its ratios.
FORMS = {
    300: (
        Form("mdssd300"),
        Form("mdssd300", width=0.25),
        Form("mdssd300", width=0.25, light=True),
        Form("mdssd300", "resnet101", 0.25),
        Form("mdssd300", LITE0, 0.25),
        Form("mdssd300", LITE0, 0.25, True),
        Form("mdssd300", LITE0, 0.5, True),
        Form("ssd300"),
        Form("ssd300", width=0.25),
        Form("ssd300", LITE0, 0.25),
        Form("ssd300", LITE0, 0.25, True),
    ),
    512: (
        Form("mdssd512"),
        Form("mdssd512", width=0.25),
        Form("mdssd512", LITE0, 0.25),
        Form("mdssd512", LITE0, 0.25, True),
        Form("ssd512", LITE0, 0.25, True),
    ),
}


def leave_candidates(model: mdssd.models.SingleShotDetector, images: Tensor) -> None:
    """Shift the scores of the background, so that CANDIDATES of a random network stay."""
    with torch.no_grad():
        logits = model(images)[1][0].double()
        rest = (logits[:, 1:].exp() / 0.01 - logits[:, 1:].exp().sum(1, keepdim=True)).log()
        shift = (rest - logits[:, :1]).nan_to_num(-1e9).flatten().topk(CANDIDATES).values[-1]
        for head in model.heads.values():
            *_, last = (m for m in head.conf.modules() if isinstance(m, nn.Conv2d))
            last.bias[::CLASSES] += shift.float()


def int8_form(model: mdssd.models.SingleShotDetector, images: Tensor) -> QuantizedNetwork:
    """Quantise a network with all layers in int8. The ranges are those of a single batch, which
    changes its boxes but not its time.
    """
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with quiet_exporters(), redirect_stdout(io.StringIO()):
        data = nncf.Dataset([{"images": images.numpy()}])
        proto = nncf.quantize(network_proto(model), data, subset_size=1)
    return QuantizedNetwork(model, proto.SerializeToString())


def measure(forms: Sequence[Form], runtimes: Sequence[str], rounds: int) -> list[list[str]]:
    """Return a row of the table for each form; the first is the base of the ratios."""
    photo = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    sides, costs = {}, {}
    for form in forms:
        print(f"{form.model}, {form.trunk}, width {form.width:g}", file=sys.stderr)
        parameters = sum(p.numel() for p in form.build().parameters())
        model = form.build()
        fold_batch_norm(model)
        size = model.input_size
        images = Preprocess(size)(photo)[None]
        leave_candidates(model, images)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(images)
        macs = counter.get_total_flops() // 2
        channels_last = images.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        costs[form] = parameters, macs, _processor_time(partial(model, channels_last))
        for runtime in runtimes:
            network = int8_form(model, images) if runtime == "int8" else model
            how = {"runtime": "openvino" if runtime == "int8" else runtime, "batch_size": 1}
            detector = mdssd.Detector(network, device="cpu", **how)
            call = partial(detector, photo)
            sides[form, runtime] = Side(call, partial(_in_a_stream, call))
    turns = Turns(sides, rounds=rounds)  # type: ignore[arg-type]
    turns.run()
    return [
        _row(form, forms[0], *costs[form], runtimes, turns.times) + accuracy(form) for form in forms
    ]


def accuracy(form: Form) -> list[str]:
    """Return COCO AP on each of DATA: the mean of the seeds, and their number in brackets.

    EfficientNet-Lite0 is counted from ImageNet's weights, and other trunks from scratch.
    """
    stored = json.loads(ACCURACY.read_text()) if ACCURACY.exists() else {}
    usual = (form, "bf16", form.trunk == LITE0)
    cells = []
    for data in DATA:
        found = [
            run["coco"]
            for name, run in stored.items()
            if "@" not in name
            and run["data"] == data
            and (Form(*run["form"]), run["amp"], run["imagenet"]) == usual
        ]
        cells.append(f"{statistics.mean(found):.3f} ({len(found)})" if found else "-")
    return cells


def write_accuracy() -> None:
    """Replace the columns of AP in docs/forms.md by the stored figures."""
    forms = {tuple(_cells(form)): form for size in FORMS.values() for form in size}
    lines = []
    for line in PAGE.read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        if form := forms.get(tuple(cells[:4])):
            line = f"| {' | '.join(cells[: -len(DATA)] + accuracy(form))} |"
        lines.append(line)
    with atomic_write(PAGE) as file:
        file.write("\n".join(lines) + "\n")


@contextmanager
def _in_a_stream(call: Callable[[], Any]) -> Iterator[None]:
    """Make calls until the threads are awake and the caches hold the network."""
    end = time.perf_counter() + STREAM
    call()
    while time.perf_counter() < end:
        call()
    yield


def _cells(form: Form) -> list[str]:
    return [form.model, form.trunk, f"{form.width:g}", "light" if form.light else "full"]


def _row(
    form: Form,
    base: Form,
    parameters: int,
    macs: int,
    processor: float,
    runtimes: Sequence[str],
    times: Any,
) -> list[str]:
    row = _cells(form)
    row += [f"{parameters / 1e6:.2f}", f"{macs / 1e9:.2f}", f"{1e3 * processor:.1f}"]
    for runtime in runtimes:
        own: Times = times[form, runtime]
        fastest = min(each.seconds for each in own.values())
        factors = ratio(own, times[base, runtime])
        mark = " *" if factors.disturbed else ""
        row += [f"{1e3 * median(own):.1f} ({1e3 * fastest:.1f})", f"{1 / factors.median:.1f}{mark}"]
    if "int8" in runtimes:
        gain = ratio(times[form, "int8"], times[form, "openvino"])
        row.append(f"{1 / gain.median:.2f}" + (" *" if gain.disturbed else ""))
    return row


def page(tables: dict[int, list[list[str]]], runtimes: Sequence[str], rounds: int) -> str:
    """Return the text of docs/forms.md."""
    versions = facts()["versions"]
    packages = {"eager": f"PyTorch {versions['torch']}"}
    if "openvino" in runtimes:
        packages["openvino"] = f"OpenVINO {versions['openvino']}"
    names = ["int8" if r == "int8" else packages[r].split()[0] for r in runtimes]
    head = ["model", "trunk", "width", "layers", "parameters, M", "MACs, G", "processor, ms"]
    head += [text for name in names for text in (f"{name}, ms", "times as fast")]
    if "int8" in runtimes:
        head.append("int8 to OpenVINO")
    head += [f"AP, {name}" for name in DATA.values()]
    text = [
        "# Forms of the networks",
        "<!-- from benchmarks/forms.py -->",
        f"""Time from an image of 500 x 375 in memory to its boxes, with `Detector`, in float32 on
        {torch.get_num_threads()} threads of {cpu_name()}, with {" and ".join(packages.values())},
        in an environment with torchvision, so that these versions can differ from those of
        constraints.txt.
        Every time is the median of {rounds} rounds, with the least in brackets. A round times every
        side once, in a new order, after at least {1e3 * STREAM:.0f} ms of untimed calls of the same
        side, as in a stream of images. "Times as fast" is the median of the rounds' ratios to the
        first row of the table. Other processes used the machine at the same time. In rows with *
        the threads waited for a core for more than a fifth of the time in most rounds. A long call
        is interrupted more often than a short one, so these ratios favour the fast networks.
        "Processor" does not count the waiting: it is the processor's time of the network alone in
        PyTorch, on one thread, the least of several calls.""",
        f"""The weights are random, and {CANDIDATES:,} scores of {CLASSES - 1} classes are above
        0.01, as in a trained network. Batch normalisation is folded. Networks of width 1 have none,
        as in the papers. `width` does not change efficientnet_lite0, and "light" is described in
        [train.md](train.md#efficientnet-lite0-for-a-cpu). The command that writes this page is
        `python -m benchmarks.forms`.""",
    ]
    if "int8" in runtimes:
        text.append("""In the columns "int8" all layers compute in [int8](int8.md), in OpenVINO.
            "int8 to OpenVINO" is the median of the rounds' ratios of OpenVINO in float32 to int8:
            how many times as fast int8 is.""")
    text.append("""AP is COCO AP on a test split after eight minutes of training on one core, as
        [accuracy.md](accuracy.md#the-light-form-against-vgg16) describes it: the mean of the seeds,
        and their number in brackets. A "-" stands for a form that was not trained on these
        data.""")
    text = [textwrap.fill(" ".join(part.split()), 110, break_on_hyphens=False) for part in text]
    for size, rows in tables.items():
        text += [f"## Inputs of {size} x {size}", _markdown(head, rows)]
    return "\n\n".join(text) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parts(form: Form) -> list[str]:
    """Return lines with the processor's time of each part of a light MDSSD, on one thread."""
    torch.set_num_threads(1)
    model = form.build()
    fold_batch_norm(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size: Any = model.input_size
    images = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        low = model.trunk(images)
        extras = model.extras(low[-1])
        calls: dict[str, Callable[[], Any]] = {
            "all": partial(model, images),
            "trunk": partial(model.trunk, images),
            "extras": partial(model.extras, low[-1]),
        }
        for k in range(3):
            module = model.get_submodule(f"module{k + 1}")
            calls[f"module{k + 1}"] = partial(module, low[k], extras[k])
        for (name, head), x in zip(model.heads.items(), model.feature_maps(images), strict=True):
            calls[f"head of {name}"] = partial(head, x)
        return [f"{name}: {1e3 * _processor_time(call):.1f} ms" for name, call in calls.items()]


def _processor_time(call: Callable[[], Any]) -> float:
    """Return the least processor time of ten calls on one thread, in seconds.

    Of calls that take more than a fifth of a second, three.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[float] = []
    with torch.inference_mode():
        call()
        while len(times) < (10 if min(times, default=0.0) < 0.2 else 3):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="file to write (default: print)")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--sizes", type=int, nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--parts", action="store_true", help="print where light MDSSD300's time is")
    options = parser.parse_args()
    if not allocator_set():  # glibc reads its settings when a process starts
        command = [sys.executable, "-m", "benchmarks.forms", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})
    run_before_others()
    torch.set_num_threads(2)
    if options.parts:
        print("\n".join(parts(Form("mdssd300", LITE0, 0.25, True))))
        return
    runtimes = ["eager", *(["openvino"] if find_spec("openvino") else [])]
    if "openvino" in runtimes and all(map(find_spec, ("nncf", "onnxruntime", "onnxscript"))):
        runtimes.append("int8")
    forms: dict[int, tuple[Form, ...]] = {size: FORMS[size] for size in options.sizes}
    if find_spec("torchvision") and 300 in forms:
        forms[300] += (SSDLITE,)
    tables = {size: measure(forms[size], runtimes, options.rounds) for size in forms}
    text = page(tables, runtimes, options.rounds)
    if options.out:
        with atomic_write(options.out) as file:
            file.write(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
