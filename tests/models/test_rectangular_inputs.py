"""Inputs that are no squares: width and height each follow the rule of their own side."""

from itertools import permutations

import numpy as np
import pytest
import torch

import mdssd
from mdssd import ops
from mdssd.data import Augmentation, Preprocess, Sample
from mdssd.models.build import build, network_of, with_input_size
from mdssd.names import INPUT_SIZES
from mdssd.priors import best_iou, fit_priors, make_priors, ssd_prior_layers, with_sizes
from mdssd.priors.maps import check_input_size, grids, resnet_grids, vgg_grids, width_height

FAMILIES = ("mdssd", "ssd", "dssd", "resnetssd")
SOME = [(640, 384), (384, 640), (256, 1024), (416, 320), (288, 256)]


def every_model():
    """MDSSD and SSD at every size; ResNet-101, which takes a second to make, at a few."""
    for family in FAMILIES:
        sizes = SOME if family in ("dssd", "resnetssd") else permutations(INPUT_SIZES, 2)
        for size in sizes:
            marks = () if size in SOME[:2] else pytest.mark.nightly("makes hundreds of networks")
            yield pytest.param(family, size, marks=marks, id=f"{family}{size[0]}x{size[1]}")


@pytest.mark.parametrize("family, size", list(every_model()))
def test_every_size_has_a_prior_for_each_prediction(family, size):
    width, height = size
    with torch.device("meta"):
        model = mdssd.create(f"{family}{width}x{height}", 3, width=0.01).eval()
    assert (model.name, model.input_size) == (f"{family}{width}x{height}", size)
    images = torch.empty(1, 3, height, width, device="meta")
    loc, logits = model(images)
    assert loc.shape[1] == logits.shape[1] == len(model.priors)
    layers = model.prior_layers(size, "voc")
    cells = [tuple(grid.size for grid in reversed(layer.grids)) for layer in layers]
    assert [x.shape[2:] for x in model.feature_maps(images)] == cells
    assert cells[-1] == (1, 1)
    assert 0 < model.priors[:, :2].min() and model.priors[:, :2].max() < 1
    with pytest.raises(ValueError, match=rf"shape \[B, 3, {height}, {width}\], got"):
        model(images.mT)


def centres(layers, size):
    """The x and the y of the centres of each layer, in pixels."""
    priors, found = make_priors(layers, size) * torch.tensor(width_height(size) * 2), []
    for layer in layers:
        row, column = layer.grids
        own, priors = priors.tensor_split([row.size * column.size * layer.per_cell])
        found.append([own[:, axis].unique().tolist() for axis in (0, 1)])
    return found


@pytest.mark.parametrize("make", [mdssd.models.SSD, mdssd.models.DSSD])
def test_the_centres_along_each_side_are_those_of_the_square(make):
    wide, tall, both = (
        centres(make.prior_layers(size, "voc"), size) for size in (640, 384, (640, 384))
    )
    assert len(both) == len(wide)
    for k, (xs, ys) in enumerate(both):
        assert xs == pytest.approx(wide[k][0], abs=1e-3)
        assert ys == pytest.approx(tall[min(k, len(tall) - 1)][1], abs=1e-3)


def test_the_maps():
    sizes = [(row.size, column.size) for row, column in grids(vgg_grids, (1024, 256))]
    assert sizes == [(128, 32), (64, 16), (32, 8), (16, 4), (8, 2), (4, 1), (2, 1), (1, 1)]
    sizes = [(row.size, column.size) for row, column in grids(resnet_grids, (320, 416))]
    assert sizes == [(40, 52), (20, 26), (10, 13), (5, 6), (3, 3), (1, 1)]


def test_the_squares_are_those_of_the_input_of_the_same_area():
    """512 x 288 has the area of a square of 384."""
    layers, square = ssd_prior_layers((512, 288), "coco"), ssd_prior_layers(384, "coco")
    assert layers[0].min_size == pytest.approx(square[0].min_size)
    assert layers[1].min_size == pytest.approx(square[1].min_size)
    priors = make_priors(layers, (512, 288))
    assert (priors[0, 2:] * torch.tensor([512.0, 288.0])).tolist() == pytest.approx(
        [square[0].min_size] * 2
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_turned_network_computes_the_turned_maps(family):
    """With transposed kernels, the network of 288 x 416 is the transpose of that of 416 x 288."""
    torch.manual_seed(0)
    wide = mdssd.create(f"{family}416x288", 3, width=0.01).double().eval()
    tall = mdssd.create(f"{family}288x416", 3, width=0.01).double().eval()
    tall.load_state_dict(
        {name: v.mT if v.ndim == 4 else v for name, v in wide.state_dict().items()}
    )
    images = torch.randn(1, 3, 288, 416, dtype=torch.float64) * 50
    with torch.no_grad():
        maps, turned = wide.feature_maps(images), tall.feature_maps(images.mT)
    assert len({x.shape for x in maps}) == len(maps)
    for x, y in zip(maps, turned, strict=True):
        torch.testing.assert_close(x.mT, y)


def test_names_and_sizes():
    network, size = network_of("ssd640x384")
    assert (network, size) == (mdssd.models.SSD, (640, 384))
    assert with_input_size("ssd321", (640, 384)) == "resnetssd640x384"
    assert with_input_size("mdssd640x384", 300) == "mdssd300"
    model = mdssd.create("mdssd320x256", 2, width=0.01)
    assert build(model.config()).name == "mdssd320x256"
    for name in ("mdssd640x640", "mdssd640x300", "mdssd640x", "mdssd640X384", "mdssd640x384x256"):
        with pytest.raises(ValueError, match="as in mdssd640 or mdssd640x384"):
            mdssd.create(name)


@pytest.mark.parametrize(
    "size, message",
    [
        ((640, 300), r"width and height, each a multiple of 32 from 256 to 1024, got \(640, 300\)"),
        ((640, 640), r"the number 640 for a square, got \(640, 640\)"),
        ((640,), r"width and height, .* got \(640,\)"),
        ((640.0, 384), r"width and height, .* got \(640.0, 384\)"),
        ([640, 384], r"a multiple of 32 .* or 300, got \[640, 384\]"),
    ],
)
def test_sizes_of_no_input(size, message):
    with pytest.raises(ValueError, match=f"where {message}"):
        check_input_size("where", size, (300, 512))


def test_an_image_is_squeezed_to_the_input():
    image = np.zeros((60, 80, 3), np.uint8)
    image[:30, :40] = 255  # the upper left quarter
    pixels = Preprocess((640, 384)).warp(image)
    assert pixels.shape == (384, 640, 3)
    assert pixels[:186, :312].min() == 255 and pixels[198:].max() == 0
    assert Preprocess((640, 384))(image).shape == (3, 384, 640)


def test_augmented_boxes_are_where_their_pixels_are():
    """Also after quarter turns, which exchange the sides."""
    image = np.zeros((200, 400, 3), np.uint8)
    image[40:80, 100:260] = 255
    box = np.array([[100, 40, 260, 80]], np.float32)
    sample = Sample(image, box, np.array([1]), np.array([False]), "a")
    augmentation = Augmentation((640, 384), mean=(0, 0, 0), expand=2, photometric=False, turn=True)
    rng, shapes = np.random.default_rng(0), set()
    for _ in range(40):
        pixels, boxes_xyxy, labels = augmentation(sample, rng)
        assert pixels.shape == (3, 384, 640)
        if not len(labels):
            continue
        ys, xs = np.nonzero(pixels[0].numpy() > 127)
        seen = [xs.min() / 640, ys.min() / 384, (xs.max() + 1) / 640, (ys.max() + 1) / 384]
        assert boxes_xyxy[0].tolist() == pytest.approx(seen, abs=0.02)
        shapes.add(bool(np.ptp(xs) > np.ptp(ys)))
    assert shapes == {True, False}


def test_matching_and_decoding_are_those_of_the_fractions():
    """A box that is a prior is matched by it, and decoded to itself."""
    model = mdssd.create("ssd512x256", 2, width=0.01)
    for chosen in (0, 5000, len(model.priors) - 1):
        cx, cy, w, h = model.priors[chosen].tolist()
        box = torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]])
        assert best_iou(box.numpy(), model.priors)[0] == pytest.approx(1, abs=1e-5)
        loc = ops.encode_boxes(box, model.priors[chosen : chosen + 1])
        assert loc.abs().max() < 1e-3


def test_priors_are_fitted_in_pixels_of_both_sides():
    """Boxes of 20 x 20 pixels of the input are reached by squares of 20 pixels."""
    size, rng = np.array([640, 256]), np.random.default_rng(0)
    corner = rng.random((300, 2)) * (size - 20)
    boxes_xyxy = np.hstack([corner, corner + 20]) / np.tile(size, 2)
    layers = ssd_prior_layers((640, 256), "voc")
    named = make_priors(layers, (640, 256))
    assert (best_iou(boxes_xyxy, named) >= 0.5).mean() < 0.1
    sizes = fit_priors(boxes_xyxy, layers, (640, 256))
    assert sizes == fit_priors(boxes_xyxy, layers, (640, 256))
    assert all(19 < side < 27 for pair in sizes[0] for side in pair)
    fitted = make_priors(with_sizes("ssd", layers, sizes), (640, 256))
    assert (best_iou(boxes_xyxy, fitted) >= 0.5).mean() > 0.95
    # Turned by a quarter, 20 pixels of 640 are 8 of 256, and 20 of 256 are 50 of 640.
    turned = fit_priors(boxes_xyxy, layers, (640, 256), turned=True)
    assert any(abs(width - 50) < 6 and abs(height - 8) < 3 for width, height in turned[0])
