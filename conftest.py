"""Expansion of the operators' cases over backends and devices, for tests and benchmarks alike.

A test that takes `case` runs for every row of CASES; with `size` and `dtype` for each of its
inputs, with `backend` (a name) and `device` for each backend that can run here.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

# Without a GPU, Triton's kernels run through its interpreter; Triton reads this on import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mdssd import ops  # noqa: E402
from mdssd.testing import CASES  # noqa: E402

DEVICES = ["cpu"] + [name for name in ("cuda", "xpu") if getattr(torch, name).is_available()]
_HOME = {"cpp": "cpu", "cuda": "cuda", "simt": "cpu"}  # the others follow the tensor


def _for_the_night(row: dict[str, Any], backend: str, device: str) -> bool:
    """Whether it takes minutes: Triton's interpreter on the sizes of the benchmarks."""
    if backend != "triton" or device != "cpu" or "size" not in row:
        return False
    return bool(row["case"].sizes[row["size"]].benchmark)


def _rows(
    case: Any, names: set[str], filters: dict[str, Any], nightly: bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"case": case}]
    if "size" in names:
        keep = filters.get("size", lambda size: True)
        rows = [r | {"size": name} for r in rows for name, s in case.sizes.items() if keep(s)]
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
            and (nightly or not _for_the_night(r, backend, device))
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
    """Expand tests that take `case`; a `cases` marker narrows them (size=, case=, reference=)."""
    names = set(metafunc.fixturenames) & {"case", "size", "dtype", "backend", "device"}
    if "case" not in names:
        return
    marker = metafunc.definition.get_closest_marker("cases")
    filters = marker.kwargs if marker else {}
    keep = filters.get("case", lambda case: True)
    nightly = metafunc.config.getoption("--nightly")
    rows = [row for case in CASES if keep(case) for row in _rows(case, names, filters, nightly)]
    order = sorted(names)
    metafunc.parametrize(
        order, [[row[n] for n in order] for row in rows], ids=[_row_id(row) for row in rows]
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also what takes minutes: large sizes, interpreted"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(case, size, reference): narrow the expanded CASES")
