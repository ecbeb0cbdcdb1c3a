"""Expands the operators' CASES over backends and devices, for the tests and the benchmarks.

A test with the argument `case` runs for every row of CASES. With `size` and `dtype` it also runs
for each input of the row, and with `backend` (a name) and `device` for each backend that can run
here. The marker `cases` narrows the rows: `case` and `size` are predicates, `reference=True`
includes that backend, and `emulated` lists the sizes for the kernels of a GPU that run on the CPU;
with `rest_nightly=True` the other sizes run with --nightly.

The environment variable MDSSD_MODULES names a folder with another build of the native modules to
test, such as the sanitized one.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor


def load_native(path: Path) -> None:
    """Load this file in place of the native module of the same name in mdssd."""
    name = f"mdssd.{path.name.partition('.')[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, path
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


# A shell lets the commands that it runs in the background ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if folder := os.environ.get("MDSSD_MODULES"):
    modules = sorted(Path(folder).glob("_*.so"))
    assert modules, f"MDSSD_MODULES: no module in {folder}"
    for path in modules:
        load_native(path)
# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mdssd import ops  # noqa: E402
from mdssd.ops import _modules  # noqa: E402
from mdssd.testing import CASES  # noqa: E402

DEVICES = ["cpu"] + [name for name in ("cuda", "xpu") if getattr(torch, name).is_available()]
_HOME = {"cpp": "cpu", "cuda": "cuda", "simt": "cpu"}  # the others run on any device


def _emulated(backend: str, device: str) -> bool:
    """Whether kernels for a GPU run on the CPU."""
    return backend == "simt" or (backend == "triton" and device == "cpu")


# The sizes at which Triton's interpreter runs other types than float32 too. The type only changes
# how a kernel loads, computes and stores a number, which these show for each operator.
_EVERY_DTYPE = ("empty", "no_image", "one", "small", "odd", "ragged")


def _takes_minutes(row: dict[str, Any], backend: str, device: str) -> bool:
    """Whether kernels for a GPU take minutes on the CPU for this row, or with its like.

    The sizes of the benchmarks are large. Those named `nightly` are so for Triton's interpreter.
    """
    if "size" not in row or not _emulated(backend, device):
        return False
    size = row["case"].sizes[row["size"]]
    if backend != "triton":
        return bool(size.benchmark)
    other = row.get("dtype", torch.float32) != torch.float32 and row["size"] not in _EVERY_DTYPE
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return bool(size.benchmark or size.nightly or (interpreted and other))


def _rows(
    case: Any, names: set[str], filters: dict[str, Any], config: pytest.Config
) -> list[dict[str, Any]]:
    nightly = config.getoption("nightly")
    emulated_sizes = filters.get("emulated", (None, *case.sizes))
    if nightly and filters.get("rest_nightly"):
        emulated_sizes = (None, *case.sizes)
    rows: list[dict[str, Any]] = [{"case": case}]
    if "size" in names:
        keep = filters.get("size", lambda size: True)
        rows = [r | {"size": name} for r in rows for name, s in case.sizes.items() if keep(s)]
        if config.getoption("small"):
            rows = [r for r in rows if not case.sizes[r["size"]].benchmark]
    if "dtype" in names:
        rows = [r | {"dtype": dtype} for r in rows for dtype in case.sizes[r["size"]].dtypes]
    if "backend" in names:
        rows = [
            r | {"backend": backend, "device": device}
            for r in rows
            for device in DEVICES
            for backend in ops.backends()[_torch_op(case.op)]
            if _HOME.get(backend, device) == device
            and (backend != "reference" or filters.get("reference", False))
            and (r.get("size") in emulated_sizes or not _emulated(backend, device))
            and (nightly or not _takes_minutes(r, backend, device))
        ]
    return rows


def _torch_op(op: str) -> str:
    return "nms" if op == "batched_nms" else op


def _row_id(row: dict[str, Any]) -> str:
    parts = [row["case"].op] + [row[k] for k in ("size", "backend", "device") if k in row]
    if "dtype" in row:
        parts.append(str(row["dtype"]).removeprefix("torch."))
    return "-".join(parts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Expand the tests that take `case`; the marker `cases` narrows them."""
    names = set(metafunc.fixturenames) & {"case", "size", "dtype", "backend", "device"}
    if "case" not in names:
        if _is_backend_of_conftest(metafunc):
            metafunc.parametrize("backend", ops.backends()["nms_padded"], indirect=True)
        return
    marker = metafunc.definition.get_closest_marker("cases")
    filters = marker.kwargs if marker else {}
    keep = filters.get("case", lambda case: True)
    rows = [row for c in CASES if keep(c) for row in _rows(c, names, filters, metafunc.config)]
    order = sorted(names)
    metafunc.parametrize(
        order, [[row[n] for n in order] for row in rows], ids=[_row_id(row) for row in rows]
    )


def _is_backend_of_conftest(metafunc: pytest.Metafunc) -> bool:
    """Whether a test uses the fixture `backend` of this file, with nothing given for it."""
    fixtures = metafunc._arg2fixturedefs.get("backend", ())
    marks = metafunc.definition.iter_markers("parametrize")
    given = any("backend" in mark.args[0] for mark in marks)
    return bool(fixtures) and fixtures[-1].func is _backend and not given


def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test on each backend, with the tensors where that backend runs.

    On a machine with a GPU the backends "cuda" and "triton" run there. New tensors are then made
    there, and the tensors that the test's file has at its top are moved there.
    """
    name = request.param
    there = name in ("cuda", "triton") and torch.cuda.is_available()
    with ops.backend(name):
        if not there:
            yield name
            return
        for variable, value in list(vars(request.module).items()):
            if isinstance(value, Tensor | list | tuple):
                monkeypatch.setattr(request.module, variable, _moved(value))
        with torch.device("cuda"):
            yield name


backend = pytest.fixture(_backend)


def _moved(value: Any) -> Any:
    """Return tensors, and the tensors in plain lists and tuples, on the GPU."""
    if type(value) in (list, tuple):
        return type(value)(_moved(item) for item in value)
    return value.to("cuda") if isinstance(value, Tensor) else value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--small", action="store_true", help="skip the sizes of CASES that are also benchmarks"
    )
    parser.addoption(
        "--nightly", action="store_true", help="also run the tests and sizes that take minutes"
    )
    parser.addoption(
        "--unfilled",
        action="store_true",
        help="leave new tensors of tests/ops/test_ops.py unwritten, for compute-sanitizer",
    )
    parser.addoption(
        "--simt-shuffle",
        type=int,
        default=0,
        metavar="SEED",
        help="run the threads and blocks of the simt backend in an order derived from SEED",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked `nightly` unless --nightly was given."""
    if config.getoption("nightly"):
        return
    for item in items:
        if marker := item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason=f"{marker.args[0]}: run it with --nightly"))


@pytest.fixture(autouse=True)
def _simt_order(request: pytest.FixtureRequest) -> None:
    # Set before each test, so that a test has the same order alone and among others.
    if _modules.simt is not None:
        seed = request.config.getoption("simt_shuffle")
        _modules.simt.set_shuffle(seed)
        # torch.empty then returns NaN and large numbers: memory that no kernel wrote shows.
        torch.use_deterministic_algorithms(seed > 0, warn_only=True)


# The same examples in every run, so that a test does not fail by chance; new ones every night.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "usual", max_examples=50, derandomize=True, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "nightly", settings.get_profile("usual"), max_examples=3000, derandomize=False, print_blob=True
)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("nightly" if config.getoption("nightly") else "usual")
    config.addinivalue_line(
        "markers", "cases(case, size, reference, emulated, rest_nightly): narrow CASES"
    )
    config.addinivalue_line("markers", "nightly(reason): skip this slow test without --nightly")
