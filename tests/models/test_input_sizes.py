"""Every network at every input size: one rule for maps, layers and priors."""

import pytest
import torch

import mdssd
from mdssd.models import DSSD, MDSSD, SSD, ResNetSSD, build
from mdssd.models.build import input_size, network_of, with_input_size
from mdssd.names import INPUT_SIZES
from mdssd.priors import dssd_prior_layers, mdssd_prior_layers, ssd_prior_layers
from mdssd.priors.maps import (
    deconvolution,
    resnet_extra_layers,
    resnet_grids,
    vgg_extra_layers,
    vgg_grids,
)

FAMILIES = ("mdssd", "ssd", "dssd", "resnetssd")
HALVE, SHRINK, END = (3, 2, 1), (3, 1, 0), (4, 1, 1)


def on_meta(name, num_classes=4, **options):
    with torch.device("meta"):
        return mdssd.create(name, num_classes, **options)


def test_the_sizes_are_the_multiples_of_32():
    assert len(INPUT_SIZES) == 25
    assert (INPUT_SIZES[0], INPUT_SIZES[1], INPUT_SIZES[-1]) == (256, 288, 1024)


def every_model():
    """Each network at each size; ResNet-101, which takes a second to make, at a few."""
    for family in FAMILIES:
        for size in INPUT_SIZES:
            common = family in ("mdssd", "ssd") or size in (256, 288, 416, 1024)
            marks = () if common else pytest.mark.nightly("makes ResNet-101 dozens of times")
            yield pytest.param(family, size, marks=marks, id=f"{family}{size}")


@pytest.mark.parametrize("family, size", list(every_model()))
def test_every_size_has_a_prior_for_each_prediction(family, size):
    model = on_meta(f"{family}{size}", width=0.0625)
    assert (model.name, model.input_size) == (f"{family}{size}", size)
    images = torch.empty(2, 3, size, size, device="meta")
    loc, logits = model(images)
    assert loc.shape == (2, len(model.priors), 4)
    assert logits.shape == (2, len(model.priors), 4)
    layers = model.prior_layers(size, "voc")
    assert [x.shape[2:] for x in model.feature_maps(images)] == [(n.size, n.size) for n in layers]
    assert layers[-1].size == 1
    assert len(model.heads) == len(layers)
    # No centre is outside the image, and the sizes grow from map to map.
    assert 0 < model.priors[:, :2].min() and model.priors[:, :2].max() < 1
    squares = [layer.min_size for layer in layers] + [layers[-1].max_size]
    assert squares[family == "mdssd" :] == sorted(set(squares))
    assert 0.84 * size < squares[-2] <= 0.95 * size
    large = (416, 800) if family in ("mdssd", "ssd") else (512, 1024)
    assert len(layers) - (family == "mdssd") == 6 + sum(size >= least for least in large)


@pytest.mark.parametrize(
    "size, sizes, layers",
    [
        (300, (38, 19, 10, 5, 3, 1), (HALVE, HALVE, SHRINK, SHRINK)),
        (512, (64, 32, 16, 8, 4, 2, 1), (HALVE, HALVE, HALVE, HALVE, END)),
        (256, (32, 16, 8, 4, 2, 1), (HALVE, HALVE, HALVE, END)),
        (352, (44, 22, 11, 6, 3, 1), (HALVE, HALVE, HALVE, SHRINK)),
        (640, (80, 40, 20, 10, 5, 3, 1), (HALVE, HALVE, HALVE, SHRINK, SHRINK)),
        (800, (100, 50, 25, 13, 7, 4, 2, 1), (*[HALVE] * 5, END)),
    ],
)
def test_layers_on_vgg16(size, sizes, layers):
    assert vgg_extra_layers(size) == layers
    assert tuple(grid.size for grid in vgg_grids(size)) == sizes


@pytest.mark.parametrize(
    "size, sizes, layers",
    [
        (321, (40, 20, 10, 5, 3, 1), ((2, 2), (2, 2), (3, 1), (3, 1))),
        (513, (64, 32, 16, 8, 4, 2, 1), ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2))),
        (320, (40, 20, 10, 5, 3, 1), ((2, 2), (2, 2), (3, 1), (3, 1))),
        (416, (52, 26, 13, 6, 3, 1), ((2, 2), (3, 2), (2, 2), (3, 1))),
        (288, (36, 18, 9, 4, 2, 1), ((2, 2), (3, 2), (2, 2), (2, 2))),
    ],
)
def test_layers_on_resnet101(size, sizes, layers):
    assert [(kernel, stride) for kernel, stride, _ in resnet_extra_layers(size)] == list(layers)
    assert tuple(grid.size for grid in resnet_grids(size)) == sizes


def test_the_rule_makes_the_deconvolutions_of_the_papers():
    """Of MDSSD: the paper's kernels for 300. Of DSSD: those of its code."""

    def last(size):
        model = on_meta(f"mdssd{size}", width=0.01)
        convs = [m.high[4] for m in (model.module1, model.module2, model.module3)]
        return [(conv.kernel_size[0], conv.padding[0]) for conv in convs]

    assert last(300) == [(3, 3), (2, 1), (3, 3)]
    assert last(512) == [(2, 0), (2, 0), (2, 0)]
    # 20 -> 40 -> 80 -> 160; 10 -> 20 -> 40 -> 80; 5 -> 10 -> 20 -> 40.
    assert last(640) == [(2, 0), (2, 0), (2, 0)]
    # 9 -> 18 -> 36 -> 72; 5 -> 10 -> 20 -> 36; 3 -> 6 -> 12 -> 18.
    assert last(288) == [(2, 0), (2, 2), (2, 3)]
    for have, want in ((40, 75), (20, 38), (12, 19), (20, 36), (7, 14)):
        kernel, padding = deconvolution(have, want)
        assert (have - 1) * 2 + kernel - 2 * padding == want

    def deconvolutions(name):
        model = on_meta(name, width=0.01)
        convs = [module.deep[0] for module in model.deconv.values()]
        return [(conv.kernel_size[0], conv.stride[0]) for conv in convs]

    assert deconvolutions("dssd321") == [(3, 1), (3, 1), (2, 2), (2, 2), (2, 2)]
    assert deconvolutions("dssd513") == [(2, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)]
    assert deconvolutions("dssd416") == [(3, 1), (2, 2), (3, 2), (2, 2), (2, 2)]


def test_the_rule_makes_the_prior_sizes_of_the_original_code():
    def squares(layers):
        return [*(layer.min_size for layer in layers), layers[-1].max_size]

    tables = {
        (300, "voc"): [30, 60, 111, 162, 213, 264, 315],
        (300, "coco"): [21, 45, 99, 153, 207, 261, 315],
        (512, "voc"): [35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6],
        (512, "coco"): [20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72],
    }
    for (size, scales), table in tables.items():
        assert squares(ssd_prior_layers(size, scales)) == table
        assert squares(mdssd_prior_layers(size, scales)) == [table[0], *table]
    table = [32.1, 64.2, 121.98, 179.76, 237.54, 295.32, 353.1]
    assert squares(dssd_prior_layers(321, "voc")) == table
    table = [20.52, 51.3, 138.51, 225.72, 312.93, 400.14, 487.35, 574.56]
    assert squares(dssd_prior_layers(513, "coco")) == table
    assert [layer.step for layer in ssd_prior_layers(300)] == [8, 16, 32, 64, 100, 300]
    assert [layer.step for layer in ssd_prior_layers(512)] == [8, 16, 32, 64, 128, 256, 512]
    grids = [(layer.size, layer.step, layer.first) for layer in dssd_prior_layers(321, "voc")]
    assert grids[2:] == [(10, 32, 10.5), (5, 64, 26.5), (3, 64, 90.5), (1, 321, 160.5)]
    grids = [(layer.size, layer.step, layer.first) for layer in dssd_prior_layers(513, "coco")]
    assert grids[4:] == [(4, 128, 58.5), (2, 256, 122.5), (1, 513, 256.5)]


def test_prior_sizes_between_and_beyond_those_of_the_papers():
    # Halfway between 300 and 512 is 406; 416 is 116/212 of the way, 1024 is 724/212.
    first, second, *_ = ssd_prior_layers(416, "voc")
    assert first.min_size == pytest.approx(30 + 5.84 * 116 / 212)
    assert second.min_size == pytest.approx(60 + 16.8 * 116 / 212)
    assert (first.step, second.step) == (8, 16)
    small = mdssd_prior_layers(1024, "small")
    assert small[1].min_size == pytest.approx(21 - 0.52 * 724 / 212)
    assert small[0].min_size == small[1].min_size / 2
    # 7 maps, second square 15.6%: steps of (90 - 15.6) / 5 = 14.8, truncated to 14% of 448.
    layers = ssd_prior_layers(448)
    assert layers[3].min_size - layers[2].min_size == pytest.approx(0.14 * 448)
    paper = mdssd_prior_layers(640, "paper")
    assert paper[1].min_size == pytest.approx(128) and paper[-1].min_size == pytest.approx(576)


def test_the_deconvolutions_of_dssd_have_the_sizes_of_the_maps_below():
    for size in INPUT_SIZES:
        sizes = [grid.size for grid in resnet_grids(size)]
        assert sizes[:2] == [size // 8, size // 16]
        layers = resnet_extra_layers(size)
        for layer, low, high in zip(layers, sizes[1:-1], sizes[2:], strict=True):
            assert layer.out(low) == high
            assert (high - 1) * layer.stride + layer.kernel == low


def test_steps_divide_the_input():
    for size in INPUT_SIZES:
        for layer in mdssd_prior_layers(size):
            assert layer.step * layer.size == pytest.approx(size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [256, 416])
def test_a_forward_pass_in_numbers(family, size):
    torch.manual_seed(0)
    model = mdssd.create(f"{family}{size}", 3, width=0.0625)
    with torch.no_grad():  # in training mode, since batch normalisation has no statistics yet
        loc, logits = model(torch.randn(2, 3, size, size) * 50)
    assert loc.shape == (2, len(model.priors), 4) and logits.shape[-1] == 3
    assert loc.isfinite().all() and logits.isfinite().all()


def test_names():
    assert network_of("mdssd640") == (MDSSD, 640)
    assert network_of("ssd448") == (SSD, 448)
    assert network_of("ssd321") == (ResNetSSD, 321)
    assert network_of("resnetssd448") == (ResNetSSD, 448)
    assert network_of("dssd1024") == (DSSD, 1024)
    assert (input_size("mdssd300"), input_size("dssd513")) == (300, 513)
    assert with_input_size("mdssd300", None) == "mdssd300"
    assert with_input_size("mdssd640", 300) == "mdssd300"
    assert with_input_size("ssd513", 321) == "ssd321"
    assert with_input_size("ssd513", 512) == "resnetssd512"
    assert with_input_size("resnetssd512", 513) == "ssd513"
    assert build({"model": "mdssd320", "width": 0.01, "num_classes": 2}).input_size == 320


@pytest.mark.parametrize(
    "name",
    ["mdssd", "mdssd0640", "mdssd640 ", "mdssd250", "mdssd1056", "mdssd321", "ssd224", "dssd300"]
    + ["resnetssd321", "mdssd-640", "mdssd６４０", "vgg300", "", 640, None],
)
def test_names_of_no_model(name):
    for call in (lambda: mdssd.create(name), lambda: build({"model": name})):
        with pytest.raises(
            ValueError, match=r"must be one of mdssd300, .* as in mdssd640 or mdssd640x384 \(256"
        ):
            call()


@pytest.mark.parametrize(
    "model, size, message",
    [
        ("mdssd300", 250, "expected a multiple of 32 from 256 to 1024, or 300, got 250"),
        ("ssd512", 321, "expected a multiple of 32 from 256 to 1024, or 300, got 321"),
        ("dssd321", 300, "expected a multiple of 32 from 256 to 1024, or 321 or 513, got 300"),
        ("mdssd300", 1056, ".* or 300, got 1056"),
        ("mdssd300", 320.0, ".* or 300, got 320.0"),
        ("mdssd300", True, ".* or 300, got True"),
    ],
)
def test_sizes_of_no_model(model, size, message):
    with pytest.raises(ValueError, match=f"--input-size: {message}"):
        with_input_size(model, size)
    with pytest.raises(ValueError, match="must be a multiple of 32"):
        ssd_prior_layers(size if size != 300 else 301)


def test_create_has_the_options_of_the_constructors():
    model = mdssd.create("ssd320", 3, width=0.0625, prior_scales="coco", clip_priors=True)
    assert model.options.prior_scales == "coco" and model.priors.max() == 1
    assert mdssd.create("ssd300", width=0.01).config() == mdssd.ssd300(width=0.01).config()
    assert mdssd.create("dssd513", width=0.01).config() == mdssd.dssd513(width=0.01).config()
    with pytest.raises(TypeError, match="depth"):
        mdssd.create("ssd320", depth=3)
    with pytest.raises(ValueError, match="dssd320: batch_norm must be True"):
        mdssd.create("dssd320", batch_norm=False, width=0.01)
    with pytest.raises(ValueError, match="'voc' or 'coco', got 'small'"):
        mdssd.create("dssd320", prior_scales="small", width=0.01)


@pytest.mark.parametrize("name", ["mdssd416", "resnetssd320"])
def test_priors_with_sizes_of_their_own(name):
    network, size = network_of(name)
    usual = network.prior_layers(size, "coco")
    sizes = tuple(tuple((10.0 + k, 12.0) for k in range(layer.per_cell)) for layer in usual)
    model = mdssd.create(name, 2, width=0.01, prior_scales=sizes)
    torch.testing.assert_close(model.priors[1, 2:] * size, torch.tensor([11.0, 12.0]))
    assert build(model.config()).config() == model.config()


def test_freezing_the_base():
    model = mdssd.create("mdssd384", 3, width=0.0625, batch_norm=True)
    model.freeze("base", "batch-norm")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"extras.conv11.conv11_2.conv.weight", "trunk.fc6.conv.weight"} <= frozen
    assert "module1.low.conv.weight" not in frozen
