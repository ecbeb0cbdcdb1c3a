"""The operators under torch.compile, torch.export, torch.func, autocast and opcheck."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mdssd import ops
from mdssd.models import build
from mdssd.ops import _dispatch
from mdssd.testing import Case

NAMES = ("ssd300", "ssd512", "mdssd300", "mdssd512", "ssd321", "ssd513", "dssd321", "dssd513")


# --- whole detectors -----------------------------------------------------------------------------


class Detect(nn.Module):
    """A module from images to the results of `ops.detection_output`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        resnet = name.endswith(("321", "513"))
        config = {"model": name, "num_classes": 3, "width": 0.0625, "batch_norm": resnet}
        self.model = build(config)
        if resnet:  # the blocks of a stage are alike, except for the first
            trunk = self.model.trunk
            for stage in ("layer1", "layer2", "layer3", "layer4"):
                setattr(trunk, stage, getattr(trunk, stage)[:1])
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        loc, logits = self.model(images)
        return tuple(ops.detection_output(loc, logits, self.model.priors))

    def images(self, count: int) -> Tensor:
        return torch.randn(count, 3, self.model.input_size, self.model.input_size) * 50


def assert_equal(got: Any, want: Any) -> None:
    torch.testing.assert_close(tuple(got), tuple(want), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "mdssd300"
        else pytest.param(name, marks=pytest.mark.nightly("compiles for many seconds"))
        for name in NAMES
    ],
)
@torch.no_grad()
def test_compiles_for_any_batch_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    detect = Detect(name)
    compiled = torch.compile(detect, fullgraph=True, backend="eager")
    images = detect.images(2)
    torch._dynamo.mark_dynamic(images, 0)
    compiled(images)
    images = detect.images(3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = compiled(images)
    assert_equal(got, detect(images))
    assert got[3].min() > 0


@pytest.mark.parametrize("name", ["ssd300", "dssd321"])
@torch.no_grad()
def test_exports_for_any_batch(name: str) -> None:
    """One model is exported with strict=True, which takes longer and uses Dynamo."""
    detect = Detect(name)
    batch = torch.export.Dim("batch", min=1)
    example, shapes = (detect.images(2),), ({0: batch},)
    strict = name == "ssd300"
    program = torch.export.export(detect, example, dynamic_shapes=shapes, strict=strict)
    if strict:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    module = program.module()
    for count in (1, 3):
        images = detect.images(count)
        assert_equal(module(images), detect(images))


def test_a_step_of_training_compiles_for_any_number_of_boxes() -> None:
    torch._dynamo.reset()
    model = Detect("ssd300").model.train()

    def loss(images: Tensor, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
        targets = ops.encode_targets(boxes, labels, model.priors)
        return sum(ops.multibox_loss(*model(images), targets.loc, targets.labels))

    def step(loss: Callable[..., Tensor], counts: tuple[int, ...]) -> list[Tensor]:
        torch.manual_seed(1)
        centres = [torch.rand(count, 2) for count in counts]
        boxes = [torch.cat([c - 0.1, c + 0.1], 1) for c in centres]
        labels = [torch.ones(count, dtype=torch.int64) for count in counts]
        for ragged in (*boxes, *labels):
            torch._dynamo.mark_dynamic(ragged, 0)
        model.zero_grad()
        result = loss(torch.randn(2, 3, 300, 300), boxes, labels)
        result.backward()
        return [result.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    step(compiled, (3, 2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = step(compiled, (9, 4))
    assert_equal(got, step(loss, (9, 4)))
    assert len(got) > 20


@pytest.mark.parametrize("name", ["ssd300", "dssd321"])
def test_jit_script_names_torch_export(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name}: torch.jit.script .* use torch.export"):
        torch.jit.script(Detect(name))


# --- torch.func ----------------------------------------------------------------------------------


def small_inputs(case: Case, seed: int = 0) -> tuple[list[Any], dict[str, Any]]:
    size = next(name for name in case.sizes if name in ("small", "ragged", "odd"))
    args, kwargs = case.inputs(size, torch.float32, seed=seed)
    return list(args), kwargs


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def assert_vmap_is_a_loop(
    case: Case, positions: tuple[int, ...], dim: int, rows: int, backend: str
) -> None:
    """Compare vmap over the arguments at `positions`, along `dim`, with one call per row."""
    seeds = [small_inputs(case, seed) for seed in range(rows)]
    args, kwargs = seeds[0]
    for i in positions:
        # A view: each row keeps the memory format of the argument.
        args[i] = torch.stack([row[0][i] for row in seeds]).movedim(0, dim)
    in_dims = tuple(dim if i in positions else None for i in range(len(args)))
    with ops.backend(backend):
        got = torch.func.vmap(lambda *row: case(*row, **kwargs), in_dims=in_dims)(*args)
        for k in range(rows):
            row = [a.select(dim, k) if i in positions else a for i, a in enumerate(args)]
            assert_equal([result[k] for result in got], case(*row, **kwargs))


@pytest.mark.cases(
    case=lambda case: case.op not in ("nms", "batched_nms", "soft_nms", "merge_boxes"),
    reference=True,
    emulated=(),
)
def test_vmap_gives_the_bits_of_a_loop(case: Case, backend: str, device: str) -> None:
    args, _ = small_inputs(case)
    tensors = tuple(i for i, arg in enumerate(args) if is_tensor(arg))
    assert_vmap_is_a_loop(case, tensors, 0, 2, backend)
    for position in tensors:
        assert_vmap_is_a_loop(case, (position,), 1, 2, backend)


@pytest.mark.parametrize("op", ["l2norm", "l2norm_add_relu"])
def test_vmap_of_channels_last_maps(op: str, backend: str) -> None:
    """Without the reference: the order of PyTorch's own sum also depends on the batch size."""
    if backend == "reference":
        pytest.skip("its sum depends on the batch size")
    maps = torch.randn(2, 3, 5, 7, 33).permute(0, 1, 4, 2, 3)
    scale = torch.rand(33)
    count = 2 if op == "l2norm_add_relu" else 1

    def call(x: Tensor) -> Tensor:
        return getattr(ops, op)(*[x] * count, *[scale] * count)

    for dim in (0, 1):
        got = torch.func.vmap(call, in_dims=dim)(maps)
        assert_equal(got, [call(row) for row in maps.unbind(dim)])


def test_vmap_over_boxes_of_images() -> None:
    boxes = torch.rand(4, 3, 4).sort(-1).values
    priors = torch.rand(50, 4)
    got = torch.func.vmap(lambda one: tuple(ops.match_priors([one], priors)))(boxes)
    want = ops.match_priors(list(boxes), priors)
    assert_equal([result[:, 0] for result in got], want)


def test_vmap_over_nothing_and_over_vmap() -> None:
    priors = torch.rand(5, 4)
    for op in (
        ops.decode_boxes,
        ops.box_iou,
    ):  # in one call, and once per row of b
        got = torch.func.vmap(op, in_dims=(0, None))(torch.rand(0, 5, 4), priors)
        assert got.shape == (0, *op(priors, priors).shape)
    assert torch.func.vmap(ops.box_iou)(torch.rand(0, 2, 4), torch.rand(0, 3, 4)).shape == (0, 2, 3)
    a, b = torch.rand(2, 3, 4).sort(-1).values, torch.rand(5, 6, 4).sort(-1).values
    pairs = torch.func.vmap(torch.func.vmap(ops.box_iou, in_dims=(None, 0)), in_dims=(0, None))
    assert torch.equal(pairs(a, b)[1, 4], ops.box_iou(a[1], b[4]))


def test_vmap_of_nms_names_the_op_to_use() -> None:
    boxes, scores = torch.rand(2, 5, 4), torch.rand(2, 5)
    with pytest.raises(NotImplementedError, match="nms: torch.func.vmap: .* use nms_padded"):
        torch.func.vmap(lambda b, s: ops.nms(b, s, 0.5))(boxes, scores)
    with pytest.raises(NotImplementedError, match="soft_nms: torch.func.vmap: .* soft_nms_padded"):
        torch.func.vmap(ops.soft_nms)(boxes, scores)
    labels, settings = torch.ones(5).long(), {"method": "wbf", "threshold": 0.5}
    with pytest.raises(NotImplementedError, match="merge_boxes: torch.func.vmap: .* merge_boxes_p"):
        torch.func.vmap(lambda b, s: ops.merge_boxes(b, s, labels, **settings))(boxes, scores)


def total(case: Case, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return a number whose gradients depend on the values of the arguments."""
    return sum(result.square().sum() for result in case(*args, **kwargs))


@pytest.mark.cases(case=lambda case: case.gradients, emulated=())
def test_func_gradients_are_those_of_backward(case: Case, backend: str, device: str) -> None:
    """Checked for one input, and under vmap for each row of a batch."""
    rows = [small_inputs(case, seed) for seed in range(2)]
    args, kwargs = rows[0]
    tensors = tuple(i for i, arg in enumerate(args) if is_tensor(arg))
    stacked = [
        torch.stack([row[0][i] for row in rows]) if i in tensors else args[i]
        for i in range(len(args))
    ]
    gradient = torch.func.grad(lambda *a: total(case, list(a), kwargs), argnums=case.gradients)
    in_dims = tuple(0 if i in tensors else None for i in range(len(args)))
    with ops.backend(backend):
        got = torch.func.vmap(gradient, in_dims=in_dims)(*stacked)
        for k, (values, _) in enumerate(rows):
            leaves = [values[i].requires_grad_() for i in case.gradients]
            want = torch.autograd.grad(total(case, values, kwargs), leaves)
            assert_equal(gradient(*(v.detach() if is_tensor(v) else v for v in values)), want)
            assert_equal([g[k] for g in got], want)


def test_gradients_where_pytorch_lacks_its_own_look_at_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch 2.6 does. A call without a gradient stays plain there too."""
    monkeypatch.setattr(_dispatch, "_any_requires_grad", _dispatch.some_requires_grad)
    assert _dispatch._CAN_LOOK
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    loc = torch.tensor([[0.1, -0.2, 0.3, 0.4]], requires_grad=True)
    assert not _dispatch._plain((loc, priors)) and _dispatch._plain((loc.detach(), priors))
    with torch.no_grad():
        assert _dispatch._plain((loc, priors))
    found = ops.decode_boxes(loc, priors).sum()
    want = torch.autograd.grad(found, loc)
    got = torch.func.grad(lambda x: ops.decode_boxes(x, priors).sum())(loc.detach())
    assert_equal([got], want)


def test_gradients_of_a_model_called_as_a_function() -> None:
    model = Detect("ssd300").model
    images = torch.randn(1, 3, 300, 300)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        loc, logits = torch.func.functional_call(model, parameters, (images,))
        return loc.square().mean() + logits.square().mean()

    got = torch.func.grad(loss)(parameters)
    want = torch.autograd.grad(loss(parameters), list(parameters.values()))
    assert_equal(got.values(), want)


@pytest.mark.cases(case=lambda case: case.gradients)
def test_missing_derivatives_raise_an_error(case: Case) -> None:
    """By default PyTorch would continue with zeros."""
    args, kwargs = small_inputs(case)
    position = case.gradients[0]

    def call(x: Tensor) -> Tensor:
        return total(case, [*args[:position], x, *args[position + 1 :]], kwargs)

    x = args[position]
    with pytest.raises(NotImplementedError, match=f"{case.op}: no forward-mode"):
        torch.func.jvp(call, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=f"{case.op}: no forward-mode"):
            call(dual)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(x), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{case.op}: no second derivative"):
        gradient.sum().backward()


def test_targets_have_no_gradient() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5]], requires_grad=True)
    targets = ops.encode_targets([boxes], [torch.tensor([1])], torch.rand(9, 4))
    with pytest.raises(NotImplementedError, match="encode_targets: no gradient"):
        targets.loc.sum().backward()


# --- autocast and opcheck ------------------------------------------------------------------------


@pytest.mark.cases(reference=True, emulated=())
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(
    case: Case, backend: str, device: str, inputs: torch.dtype
) -> None:
    """Results, their dtypes and gradients stay the same."""
    size = next(name for name in case.sizes if name in ("small", "ragged", "odd"))

    def run() -> tuple[Tensor, ...]:
        args, kwargs = case.inputs(size, inputs, device)
        leaves = [args[i].requires_grad_() for i in case.gradients]
        results = case(*args, **kwargs)
        if not leaves:
            return results
        ones = [torch.ones_like(result) for result in results]
        return (*(r.detach() for r in results), *torch.autograd.grad(results, leaves, ones))

    with ops.backend(backend):
        want = run()
        with torch.autocast(device, dtype=torch.bfloat16):
            got = run()
    assert_equal(got, want)


class Recorder(TorchDispatchMode):
    """Records the ops of this project and their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "mdssd":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def recorded(case: Case, size: str, dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the torch ops that a call and its gradient consist of."""
    args, kwargs = case.inputs(size, dtype)
    for position in case.gradients:
        args[position].requires_grad_()
    with Recorder() as recorder:
        results = case(*args, **kwargs)
        if case.gradients:
            sum(result.sum() for result in results).backward()
    return recorder.calls


@pytest.mark.cases(size=lambda size: not (size.benchmark or size.nightly), emulated=())
def test_opcheck_of_every_call_in_half(case: Case, size: str, backend: str, device: str) -> None:
    """Sizes, strides and dtypes of fake tensors, for gradients too."""
    dtype = case.sizes[size].dtypes[-2 if len(case.sizes[size].dtypes) > 2 else 0]
    with ops.backend(backend):
        for overload, args in recorded(case, size, dtype):
            values = tuple(a.detach() if is_tensor(a) else a for a in args)
            torch.library.opcheck(overload, values, test_utils=("test_schema", "test_faketensor"))
