"""What the operators ask in C++ to make a small call cheap has the answers of plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import Parameter

from mdssd import ops
from mdssd.ops import _checks, _dispatch, _values

if _checks._fits_in_cpp is None:
    pytest.skip("mdssd._C is not built", allow_module_level=True)


class _Other(Tensor):
    pass


_TENSORS = (
    torch.zeros(2, 4),
    torch.zeros(2, 4, dtype=torch.float16),
    torch.zeros(2, 4, dtype=torch.int64),
    torch.zeros(3, 2, 4),
    torch.zeros(4),
    torch.zeros(()),
    torch.zeros(0, 4),
    torch.zeros(2, 4, device="meta"),
    Parameter(torch.zeros(2, 4)),
    None,
    "boxes",
    [[0.0, 0.0, 1.0, 1.0]],
)
_SHAPES = (("N", 4), (2, 4), (None, "N", 4), (2,), ("N",), (), (4,), torch.Size([2, 4]), (True, 4))


@pytest.mark.parametrize("dtypes", [_checks.FLOATS, (torch.int64,)], ids=["floats", "int64"])
@pytest.mark.parametrize("like", [None, torch.zeros(1)], ids=["any device", "cpu"])
def test_cpp_accepts_what_python_accepts(
    dtypes: tuple[torch.dtype, ...], like: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = _checks._fits_in_cpp
    monkeypatch.setattr(_checks, "_fits_in_cpp", None)
    accepted = 0
    for tensor in _TENSORS:
        for shape in _SHAPES:
            try:
                _checks.check_tensor("op", "x", tensor, shape, dtypes=dtypes, like=like)
                right = True
            except (TypeError, ValueError):
                right = False
            if True not in shape:
                assert fits(tensor, shape, dtypes, like) == right, (tensor, shape)
            accepted += right
    assert accepted > 3


def test_cpp_leaves_other_tensors_to_python() -> None:
    """A subclass may answer otherwise, so that its own attributes must be asked by Python."""
    fits = _checks._fits_in_cpp
    assert not fits(torch.zeros(2, 4).as_subclass(_Other), (2, 4), _checks.FLOATS, None)


@pytest.mark.parametrize("dtype", _checks.FLOATS)
@pytest.mark.parametrize("dense", [True, False])
def test_values_are_read_as_pytorch_reads_them(dtype: torch.dtype, dense: bool) -> None:
    numbers = torch.randn(37, 4, generator=torch.Generator().manual_seed(0)).to(dtype) - 5
    if not dense:
        numbers = numbers.repeat(1, 2)[:, 2:6]
    assert _values._largest(numbers) == numbers.max().item()
    assert _values._last_width(numbers) == numbers[-1, 2].item()
    numbers[3, 1] = torch.nan
    assert math.isnan(_values._largest(numbers))
    labels = torch.tensor([5, -7, 3, 9])
    assert _values._lowest(labels) == -7 and _values._lowest(labels[::2]) == 3


def test_modes_and_transforms_see_the_offsets() -> None:
    """A list of boxes is joined with offsets, which a mode that fakes tensors must make itself."""
    boxes, priors = [torch.rand(2, 4), torch.rand(0, 4)], torch.rand(3, 4) + 0.1
    assert _dispatch.plain_thread()
    want = ops.match_priors(boxes, priors)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert not _dispatch.plain_thread()
        fake = ops.match_priors([mode.from_tensor(b) for b in boxes], mode.from_tensor(priors))
    assert fake.index.shape == want.index.shape
    mapped = torch.func.vmap(lambda p: ops.match_priors(boxes, p).index)(priors[None])
    assert torch.equal(mapped[0], want.index)
