"""SSD and MDSSD on VGG16: every layer, sizes, parameters, MACs, options."""

import pytest
import torch
from torch import nn

import mdssd
from mdssd import mdssd300, mdssd512, ops, ssd300
from mdssd.models import build
from mdssd.models.base import PredictionHead
from mdssd.models.mdssd import FusionModule
from mdssd.models.vgg import VGG16, scaled

NAMES = ["ssd300", "mdssd300", "ssd512", "mdssd512"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(name, num_classes=21, **options):
    with torch.device("meta"):
        return getattr(mdssd, name)(num_classes, **options)


def count_macs(model):
    total = 0

    def count(module, inputs, output):
        nonlocal total
        taps = module.kernel_size[0] * module.kernel_size[1]
        if isinstance(module, nn.ConvTranspose2d):
            total += inputs[0].numel() * module.out_channels * taps
        else:
            total += output.numel() * module.in_channels * taps

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    size = model.input_size
    loc, logits = model(torch.empty(1, 3, size, size, device="meta"))
    return total, loc, logits


@pytest.mark.parametrize(
    "name, classes, parameters, giga_macs, priors",
    [
        ("ssd300", 21, 26_285_486, 31.374, 8732),
        ("ssd300", 81, 34_305_206, 34.360, 8732),
        ("mdssd300", 21, 79_483_410, 67.028, 31232),
        ("mdssd300", 81, 88_056_330, 73.126, 31232),
        ("ssd512", 21, 27_188_676, 90.208, 24564),
        ("ssd512", 81, 36_038_196, 98.629, 24564),
        ("mdssd512", 21, 77_437_480, 188.195, 90100),
        ("mdssd512", 81, 86_840_200, 205.676, 90100),
    ],
)
def test_parameters_macs_and_shapes(name, classes, parameters, giga_macs, priors):
    model = on_meta(name, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    macs, loc, logits = count_macs(model)
    assert round(macs / 1e9, 3) == giga_macs
    assert loc.shape == (1, priors, 4)
    assert logits.shape == (1, priors, classes)
    assert model.priors.shape == (priors, 4)


@pytest.mark.parametrize(
    "name, sizes, channels",
    [
        ("ssd300", [38, 19, 10, 5, 3, 1], [512, 1024, 512, 256, 256, 256]),
        ("ssd512", [64, 32, 16, 8, 4, 2, 1], [512, 1024, 512, 256, 256, 256, 256]),
        ("mdssd300", [75, 38, 19, 10, 5, 3, 1], [256, 512, 1024, 512, 256, 256, 256]),
        ("mdssd512", [128, 64, 32, 16, 8, 4, 2, 1], [256, 512, 1024, 512, 256, 256, 256, 256]),
    ],
)
def test_map_sizes(name, sizes, channels):
    model = on_meta(name)
    size = model.input_size
    maps = model.feature_maps(torch.empty(2, 3, size, size, device="meta"))
    assert [tuple(x.shape) for x in maps] == [
        (2, c, s, s) for c, s in zip(channels, sizes, strict=True)
    ]


def test_details_of_the_trunk():
    trunk = VGG16(0.125)
    assert trunk.fc6.conv.dilation == (6, 6)
    assert trunk.fc6.conv.padding == (6, 6)
    assert trunk.fc7.conv.kernel_size == (1, 1)
    x = torch.randn(1, 3, 64, 64)
    conv3_3, conv4_3, conv7 = trunk(x)
    assert [m.shape[-1] for m in (conv3_3, conv4_3, conv7)] == [16, 8, 4]
    assert all(m.min() == 0 for m in (conv3_3, conv4_3, conv7))
    # pool5 keeps the size: 3x3, stride 1.
    seen = []
    trunk.fc6.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trunk.conv5.register_forward_hook(lambda module, inputs, output: seen.append(output))
    trunk(x)
    conv5, pool5 = seen
    assert torch.equal(pool5, nn.functional.max_pool2d(conv5, 3, 1, 1))


def test_fusion_module_is_the_papers():
    torch.manual_seed(0)
    module = FusionModule(8, 16, 24, 8, 3, 3, batch_norm=False)
    nn.init.uniform_(module.scale_low, 1, 20)
    nn.init.uniform_(module.scale_high, 1, 20)
    low, high = torch.randn(2, 8, 75, 75), torch.randn(2, 16, 10, 10)
    a, b = module.low.conv(low), high
    for k in (0, 2):
        b = module.high[k + 1].conv(module.high[k](b)).relu()
    b = module.high[5].conv(module.high[4](b))

    def unit(x, scale):
        return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt() * scale[:, None, None]

    total = (unit(a, module.scale_low) + unit(b, module.scale_high)).relu()
    torch.testing.assert_close(module(low, high), module.out.conv(total).relu())


def test_only_the_head_of_ssd_sees_the_normalised_conv4_3():
    torch.manual_seed(0)
    model = ssd300(3, width=0.125).eval()
    images = torch.randn(1, 3, 300, 300) * 50
    _, conv4_3, conv7 = model.trunk(images)
    maps = model.feature_maps(images)
    norm = maps[0].square().sum(1).sqrt()
    live = conv4_3.square().sum(1) > 1e-6
    torch.testing.assert_close(norm[live], torch.full_like(norm[live], 20.0))
    torch.testing.assert_close(maps[1], conv7)


def test_head_order_is_cell_then_prior_then_coordinate():
    head = PredictionHead(4, 2, 3)
    x = torch.randn(2, 4, 5, 5)
    loc, logits = head(x)
    assert loc.shape == (2, 50, 4)
    assert logits.shape == (2, 50, 3)
    raw_loc, raw_conf = head.loc(x), head.conf(x)
    row, column, prior = 3, 1, 1
    index = (row * 5 + column) * 2 + prior
    assert torch.equal(loc[1, index], raw_loc[1, prior * 4 : prior * 4 + 4, row, column])
    assert torch.equal(logits[1, index], raw_conf[1, prior * 3 : prior * 3 + 3, row, column])


def test_heads_are_in_the_order_of_the_priors():
    model = mdssd300(2, width=0.125).eval()
    for k, head in enumerate(model.heads.values()):
        nn.init.zeros_(head.loc.weight)
        nn.init.constant_(head.loc.bias, float(k))
    with torch.no_grad():
        loc, _ = model(torch.zeros(1, 3, 300, 300))
    counts = (22500, 5776, 2166, 600, 150, 36, 4)
    expected = torch.cat([torch.full((n, 4), float(k)) for k, n in enumerate(counts)])
    assert torch.equal(loc[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_width_scales_hidden_channels_only(name):
    model = on_meta(name, 5, width=0.25)
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert path.startswith("heads.") or module.out_channels % 8 == 0
    assert model.heads["conv8_2"].conf.out_channels == 6 * 5
    assert model.heads["conv8_2"].conf.in_channels == 128
    assert scaled(64, 0.01) == 8
    assert scaled(64, 0.3) == 16
    assert scaled(128, 0.3) == 40
    assert scaled(512, 1.0) == 512


@pytest.mark.parametrize("name", ["ssd300", "mdssd300"])
def test_batch_norm_stands_in_for_the_biases_ahead_of_relu_and_l2norm(name):
    plain, normed = on_meta(name), on_meta(name, batch_norm=True)
    convs = {p for p, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    biased = {
        p
        for p, m in normed.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.bias is not None
    }
    normalised = {
        p.removesuffix("norm") + "conv"
        for p, m in normed.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    }
    assert biased | normalised == convs
    assert not biased & normalised
    heads = {p for p in convs if p.startswith("heads.")}
    deconvs = {f"module{k}.high.{i}" for k in (1, 2, 3) for i in (0, 2, 4)}
    assert biased == (heads | deconvs if name == "mdssd300" else heads)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = mdssd300(4, width=0.125, batch_norm=True)
    loc, logits = model(torch.randn(2, 3, 300, 300) * 50)
    (loc.square().mean() + logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_initial_weights():
    torch.manual_seed(0)
    model = ssd300(21, width=0.5)
    weight = model.trunk.conv3.conv3_2.conv.weight  # 128 channels
    bound = (3 / (128 * 9)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith("bias"))
    assert (model.conv4_3_scale == 20).all()
    module = mdssd300(21, width=0.5).module3
    assert (module.scale_low == 20).all() and (module.scale_high == 20).all()
    deconvolution = next(m for m in module.modules() if isinstance(m, nn.ConvTranspose2d))
    weight = deconvolution.weight  # from 128 channels to 256, 2 x 2
    bound_up = (3 / (256 * 4)) ** 0.5
    assert weight.shape == (128, 256, 2, 2) and 0.99 * bound_up < weight.abs().max() <= bound_up
    model = mdssd300(21, width=0.5, batch_norm=True)
    weight = model.trunk.conv3.conv3_2.conv.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    head = model.heads["module1"].conf.weight
    assert 0.99 * bound < head.abs().max() <= bound
    assert (model.module3.scale_low == 1).all() and (model.module3.scale_high == 0.1).all()
    taps = model.trunk.fc6.conv.weight.square().mean((0, 1)).sqrt() / (2 / (256 * 9)) ** 0.5
    expected = torch.full((3, 3), 0.1)
    expected[1, 1] = 1
    torch.testing.assert_close(taps, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["ssd300", "mdssd300"])
def test_channels_last_gives_the_same(name):
    torch.manual_seed(0)
    model = getattr(mdssd, name)(3, width=0.125).eval()
    images = torch.randn(2, 3, 300, 300) * 50
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        got = model(images.contiguous(memory_format=torch.channels_last))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_autocast_and_bfloat16_keep_priors_float32():
    torch.manual_seed(0)
    model = mdssd300(3, width=0.02, batch_norm=True).eval()
    images = torch.randn(1, 3, 300, 300) * 50
    priors = model.priors.clone()
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loc, logits = model(images)
        assert loc.dtype == logits.dtype == torch.bfloat16
        assert (logits.float() - exact[1]).abs().mean() < 0.05 * exact[1].abs().mean()
        model.to(torch.bfloat16)
        assert model(images.bfloat16())[0].dtype == torch.bfloat16
    assert model.priors.dtype == torch.float32
    assert torch.equal(model.priors, priors)
    assert "priors" not in model.state_dict()


def test_empty_batch():
    loc, logits = ssd300(3, width=0.125).eval()(torch.empty(0, 3, 300, 300))
    assert loc.shape == (0, 8732, 4)
    assert logits.shape == (0, 8732, 3)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(3, 300, 300), r"\[B, 3, 300, 300\], got \[3, 300, 300\]"),
        (torch.zeros(1, 3, 300, 299), r"mdssd300: .* got \[1, 3, 300, 299\]"),
        (torch.zeros(1, 1, 300, 300), r"got \[1, 1, 300, 300\]"),
        (torch.zeros(1, 3, 512, 512), r"got \[1, 3, 512, 512\]"),
        (torch.zeros(1, 3, 300, 300, dtype=torch.uint8), "floating point.* got torch.uint8"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        mdssd300(2, width=0.125)(images)


@pytest.mark.parametrize("name", NAMES)
def test_build_from_config(name):
    options = {
        "num_classes": 4,
        "width": 0.125,
        "batch_norm": True,
        "prior_scales": "coco",
        "clip_priors": True,
        "truncate_sizes": True,
    }
    model = getattr(mdssd, name)(**options)
    assert model.config() == {"model": name, **options, "trunk": "vgg16", "light": False}
    again = build(model.config())
    assert type(again) is type(model)
    assert again.config() == model.config()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.priors, model.priors)
    assert build({"model": name, "width": 0.125}).num_classes == 21


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "build: config\\['model'\\] .* got None"),
        ({"model": "ssd301"}, "mdssd300.* got 'ssd301'"),
        ({"model": ["ssd300"]}, "got \\['ssd300'\\]"),
        ({"model": "ssd300", "depth": 3}, "got \\['depth'\\]"),
        ({"model": "ssd300", "num_classes": 1}, "ssd300: num_classes .* got 1"),
        ({"model": "ssd300", "num_classes": 2.0}, "num_classes .* got 2.0"),
        ({"model": "ssd300", "width": 0}, "width .* got 0"),
        ({"model": "mdssd512", "width": float("nan")}, "mdssd512: width .* got nan"),
        ({"model": "mdssd512", "width": "1"}, "width .* got '1'"),
        ({"model": "ssd300", "batch_norm": 1}, "batch_norm .* got 1"),
        ({"model": "ssd300", "clip_priors": None}, "clip_priors .* got None"),
        ({"model": "ssd300", "clip_priors": "sizes"}, "clip_priors .* got 'sizes'"),
        ({"model": "ssd300", "prior_scales": "paper"}, "prior_scales .* got 'paper'"),
        ({"model": "mdssd300", "prior_scales": "imagenet"}, "got 'imagenet'"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_paper_scales_reach_the_model():
    model = mdssd300(2, width=0.125, prior_scales="paper")
    assert model.priors[0, 2].item() == pytest.approx(0.2)
    assert model.config()["prior_scales"] == "paper"


def test_backends_agree_on_the_whole_network():
    torch.manual_seed(0)
    model = mdssd300(3, width=0.125, batch_norm=True).eval()
    images = torch.randn(1, 3, 300, 300) * 50
    with torch.no_grad():
        with ops.backend("reference"):
            expected = model(images)
        got = model(images)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_mdssd512_runs():
    model = mdssd512(3, width=0.05).eval()
    with torch.no_grad():
        loc, logits = model(torch.randn(1, 3, 512, 512))
    assert loc.shape == (1, 90100, 4)
    assert logits.shape == (1, 90100, 3)
    assert loc.isfinite().all()
    assert logits.isfinite().all()
