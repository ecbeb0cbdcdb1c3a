"""Prior boxes compared with literal numbers: counts, order, first and last cells, options."""

import math

import pytest
import torch

from mdssd import ops
from mdssd.priors import (
    PriorLayer,
    dssd_prior_layers,
    make_priors,
    mdssd_prior_layers,
    ssd_prior_layers,
)

# Computed by hand from the sizes and steps of SSD's code: the first centre, then a cell's sizes.
SSD300_VOC = [
    (0.0133333, [0.1, 0.1414214], [(0.1414214, 0.0707107)]),
    (0.0266667, [0.2, 0.2720294], [(0.2828427, 0.1414214), (0.3464102, 0.1154701)]),
    (0.0533333, [0.37, 0.4469899], [(0.5232590, 0.2616295), (0.6408588, 0.2136196)]),
    (0.1066667, [0.54, 0.6191930], [(0.7636753, 0.3818377), (0.9353074, 0.3117691)]),
    (0.1666667, [0.71, 0.7904429], [(1.0040916, 0.5020458)]),
    (0.5, [0.88, 0.9612492], [(1.2445079, 0.6222540)]),
]
SSD512_VOC = [
    (0.0078125, [0.07, 0.1024695], [(0.0989949, 0.0494975)]),
    (0.015625, [0.15, 0.2121320], [(0.2121320, 0.1060660), (0.2598076, 0.0866025)]),
    (0.03125, [0.3, 0.3674235], [(0.4242641, 0.2121320), (0.5196152, 0.1732051)]),
    (0.0625, [0.45, 0.5196152], [(0.6363961, 0.3181981), (0.7794229, 0.2598076)]),
    (0.125, [0.6, 0.6708204], [(0.8485281, 0.4242641), (1.0392305, 0.3464102)]),
    (0.25, [0.75, 0.8215838], [(1.0606602, 0.5303301)]),
    (0.5, [0.9, 0.9721111], [(1.2727922, 0.6363961)]),
]
# From the tables of DSSD's code: 321 is 0.1, 0.2, 0.38 ... of the image, 513 is 0.04, 0.1, 0.27 ...
DSSD321_VOC = [
    (
        0.0077882,
        [0.1, 0.1414214],
        [(0.1264911, 0.0790569), (0.1414214, 0.0707107), (0.1732051, 0.0577350)],
    ),
    (
        0.0077882,
        [0.2, 0.2756810],
        [(0.2529822, 0.1581139), (0.2828427, 0.1414214), (0.3464102, 0.1154701)],
    ),
    (
        0.0327103,
        [0.38, 0.4613025],
        [(0.4806662, 0.3004164), (0.5374012, 0.2687006), (0.6581793, 0.2193931)],
    ),
    (
        0.0825545,
        [0.56, 0.6437391],
        [(0.7083502, 0.4427189), (0.7919596, 0.3959798), (0.9699485, 0.3233162)],
    ),
    (
        0.2819315,
        [0.74, 0.8251061],
        [(0.9360342, 0.5850214), (1.0465180, 0.5232590), (1.2817176, 0.4272392)],
    ),
    (
        0.5000000,
        [0.92, 1.0059821],
        [(1.1637182, 0.7273239), (1.3010765, 0.6505382), (1.5934867, 0.5311622)],
    ),
]
DSSD513_COCO = [
    (
        0.0048733,
        [0.04, 0.0632456],
        [(0.0505964, 0.0316228), (0.0565685, 0.0282843), (0.0692820, 0.0230940)],
    ),
    (
        0.0048733,
        [0.1, 0.1643168],
        [(0.1264911, 0.0790569), (0.1414214, 0.0707107), (0.1732051, 0.0577350)],
    ),
    (
        0.0204678,
        [0.27, 0.3446738],
        [(0.3415260, 0.2134537), (0.3818377, 0.1909188), (0.4676537, 0.1558846)],
    ),
    (
        0.0516569,
        [0.44, 0.5180734],
        [(0.5565609, 0.3478505), (0.6222540, 0.3111270), (0.7621024, 0.2540341)],
    ),
    (
        0.1140351,
        [0.61, 0.6897826],
        [(0.7715957, 0.4822473), (0.8626703, 0.4313351), (1.0565510, 0.3521837)],
    ),
    (
        0.2387914,
        [0.78, 0.8608136],
        [(0.9866306, 0.6166441), (1.1030866, 0.5515433), (1.3509996, 0.4503332)],
    ),
    (
        0.5000000,
        [0.95, 1.0315038],
        [(1.2016655, 0.7510409), (1.3435029, 0.6717514), (1.6454483, 0.5484828)],
    ),
]


def cell(centre, squares, pairs):
    sizes = [(s, s) for s in squares]
    for w, h in pairs:
        sizes += [(w, h), (h, w)]
    return torch.tensor([(centre, centre, w, h) for w, h in sizes])


def first_cells(layers, priors):
    start = 0
    for layer in layers:
        yield priors[start : start + layer.per_cell]
        start += layer.size**2 * layer.per_cell
    assert start == len(priors)


@pytest.mark.parametrize(
    "layers, image_size, table",
    [
        (ssd_prior_layers(300), 300, SSD300_VOC),
        (ssd_prior_layers(512), 512, SSD512_VOC),
        (mdssd_prior_layers(300), 300, [(0.0066667, *SSD300_VOC[0][1:]), *SSD300_VOC]),
        (mdssd_prior_layers(512), 512, [(0.00390625, *SSD512_VOC[0][1:]), *SSD512_VOC]),
        (dssd_prior_layers(321, "voc"), 321, DSSD321_VOC),
        (dssd_prior_layers(513, "coco"), 513, DSSD513_COCO),
    ],
    ids=["ssd300", "ssd512", "mdssd300", "mdssd512", "dssd321", "dssd513"],
)
def test_first_cell_of_each_layer(layers, image_size, table):
    priors = make_priors(layers, image_size)
    cells = list(first_cells(layers, priors))
    assert len(cells) == len(table)
    for got, row in zip(cells, table, strict=True):
        torch.testing.assert_close(got, cell(*row), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scales", ["voc", "coco"])
@pytest.mark.parametrize(
    "make, image_size, counts",
    [
        (ssd_prior_layers, 300, (5776, 2166, 600, 150, 36, 4)),
        (ssd_prior_layers, 512, (16384, 6144, 1536, 384, 96, 16, 4)),
        (mdssd_prior_layers, 300, (22500, 5776, 2166, 600, 150, 36, 4)),
        (mdssd_prior_layers, 512, (65536, 16384, 6144, 1536, 384, 96, 16, 4)),
    ],
)
def test_counts(make, image_size, counts, scales):
    layers = make(image_size, scales)
    assert tuple(layer.size**2 * layer.per_cell for layer in layers) == counts
    priors = make_priors(layers, image_size)
    assert priors.shape == (sum(counts), 4)
    assert priors.dtype == torch.float32


@pytest.mark.parametrize(
    "image_size, scales, counts, last_centres",
    [
        (
            321,
            "voc",
            (12800, 3200, 800, 200, 72, 8),
            (314.5, 306.5, 298.5, 282.5, 218.5, 160.5),
        ),
        (
            513,
            "coco",
            (32768, 8192, 2048, 512, 128, 32, 8),
            (506.5, 498.5, 490.5, 474.5, 442.5, 378.5, 256.5),
        ),
    ],
)
def test_counts_and_last_cells_of_dssd(image_size, scales, counts, last_centres):
    layers = dssd_prior_layers(image_size, scales)
    assert tuple(layer.size**2 * layer.per_cell for layer in layers) == counts
    priors = make_priors(layers, image_size)
    assert len(priors) == {321: 17080, 513: 43688}[image_size]
    end = 0
    for count, centre in zip(counts, last_centres, strict=True):
        end += count
        expected = torch.full((8, 2), centre / image_size)
        torch.testing.assert_close(priors[end - 8 : end, :2], expected, rtol=0, atol=1e-6)


def test_totals():
    def total(layers):
        return sum(layer.size**2 * layer.per_cell for layer in layers)

    assert total(ssd_prior_layers(300)) == 8732
    assert total(ssd_prior_layers(512)) == 24564
    assert total(mdssd_prior_layers(300)) == 31232
    assert total(mdssd_prior_layers(512)) == 90100


def test_order_is_row_then_column_then_prior():
    priors = make_priors([PriorLayer(3, 10, 4, 9, (2,))], 40)
    assert priors.shape == (36, 4)
    centres = priors[::4, :2] * 40
    expected = [(x, y) for y in (5, 15, 25) for x in (5, 15, 25)]
    torch.testing.assert_close(centres, torch.tensor(expected, dtype=torch.float32))
    root2 = math.sqrt(2)
    sizes = [(4, 4), (6, 6), (4 * root2, 4 / root2), (4 / root2, 4 * root2)]
    torch.testing.assert_close(priors[8:12, 2:] * 40, torch.tensor(sizes))


def test_coco_sizes():
    def squares(layers):
        return [(layer.min_size, layer.max_size) for layer in layers]

    assert squares(ssd_prior_layers(300, "coco")) == [
        (21, 45),
        (45, 99),
        (99, 153),
        (153, 207),
        (207, 261),
        (261, 315),
    ]
    assert squares(mdssd_prior_layers(512, "coco")) == [
        (20.48, 51.2),
        (20.48, 51.2),
        (51.2, 133.12),
        (133.12, 215.04),
        (215.04, 296.96),
        (296.96, 378.88),
        (378.88, 460.8),
        (460.8, 542.72),
    ]


@pytest.mark.parametrize("image_size", [300, 512])
def test_small_halves_module_1_of_coco(image_size):
    first, *others = mdssd_prior_layers(image_size, "small")
    coco = mdssd_prior_layers(image_size, "coco")
    assert tuple(others) == coco[1:]
    assert (first.min_size, first.max_size) == (coco[1].min_size / 2, coco[1].min_size)
    assert (first.size, first.step, first.aspect_ratios) == (image_size // 4, 4, (2,))


def test_only_small_reaches_the_smallest_objects():
    """Nearly all squares of 8 to 14 pixels overlap a prior by half; with "coco" none does."""
    random = torch.Generator().manual_seed(0)
    sizes = torch.rand(200, 1, generator=random) * 6 + 8
    centers = torch.rand(200, 2, generator=random) * 260 + 20
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1) / 300
    best = {}
    for scales in ("small", "coco"):
        priors = make_priors(mdssd_prior_layers(300, scales), 300)
        xyxy = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
        best[scales] = torch.stack([ops.box_iou(box, xyxy).amax() for box in boxes[:, None]])
    assert (best["small"] >= 0.5).float().mean() > 0.95
    assert (best["coco"] < 0.5).all()


def test_paper_scales_start_at_0_2_and_end_at_0_9():
    layers = mdssd_prior_layers(300, "paper")
    got = [layer.min_size for layer in layers] + [layers[-1].max_size]
    assert got == pytest.approx([60, 60, 102, 144, 186, 228, 270, 312])
    assert layers[0].max_size == layers[1].max_size == pytest.approx(102)
    layers = mdssd_prior_layers(512, "paper")
    assert layers[1].min_size == pytest.approx(0.2 * 512)
    assert layers[-1].min_size == pytest.approx(0.9 * 512)


def test_clip_clamps_every_coordinate_and_nothing_else():
    layers = ssd_prior_layers(300)
    free, clipped = make_priors(layers, 300), make_priors(layers, 300, clip=True)
    assert free.max() > 1.2
    assert torch.equal(clipped, free.clamp(0, 1))


def test_truncate_cuts_sizes_to_whole_pixels():
    layers = ssd_prior_layers(512)
    truncated = make_priors(layers, 512, truncate_sizes=True)
    # 35.84 -> 35, 76.8 -> 76: sqrt(35 * 76) = 51.5752.
    expected = torch.tensor([[35.0, 35.0], [51.5752, 51.5752], [49.4975, 24.7487]])
    torch.testing.assert_close(truncated[:3, 2:] * 512, expected, rtol=0, atol=1e-3)
    whole = make_priors(ssd_prior_layers(300), 300)
    assert torch.equal(whole, make_priors(ssd_prior_layers(300), 300, truncate_sizes=True))


def test_rounded_once_from_float64():
    priors = make_priors(ssd_prior_layers(300), 300)
    # Cell (row 0, column 36) of conv4_3: 36.5 * 8 / 300.
    assert priors[36 * 4, 0].item() == torch.tensor(36.5 * 8 / 300, dtype=torch.float64).float()


def test_no_layers_and_default_device():
    with torch.device("meta"):
        priors = make_priors([], 300)
        assert make_priors(ssd_prior_layers(300), 300).device.type == "cpu"
    assert priors.shape == (0, 4)
    assert priors.device.type == "cpu"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ssd_prior_layers(321), "ssd_prior_layers: image_size .* 321"),
        (lambda: mdssd_prior_layers(0), "mdssd_prior_layers: image_size .* 0"),
        (lambda: dssd_prior_layers(300, "voc"), "dssd_prior_layers: image_size .* 300"),
        (lambda: dssd_prior_layers(321, "coco"), "prior_scales .*'voc', got 'coco'"),
        (lambda: dssd_prior_layers(513, "voc"), "prior_scales .*'coco', got 'voc'"),
        (
            lambda: ssd_prior_layers(300, "paper"),
            "prior_scales .*'paper' \\('paper' exists for MDSSD",
        ),
        (
            lambda: ssd_prior_layers(300, "small"),
            "prior_scales .*'small' \\('small' exists for MDSSD",
        ),
        (lambda: mdssd_prior_layers(300, "VOC"), "prior_scales .*'VOC'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
