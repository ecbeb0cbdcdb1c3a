"""Networks with inputs that no paper has: detection, export and weights of other inputs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mdssd
from mdssd import cli, ops
from mdssd.data.synthetic import SyntheticScenes
from mdssd.detection.detector import Detector
from mdssd.detection.export import export
from mdssd.models import MEAN_RGB
from mdssd.priors.maps import width_height
from mdssd.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

DEMO = Path(__file__).parents[2] / "demo/mdssd300-shapes.json"
CLASSES = SyntheticScenes(1).classes


def demo(size):
    """The demo's weights in a network with another input."""
    torch.manual_seed(0)  # for the layers that are new
    options = {"width": 0.125, "batch_norm": True, "prior_scales": "small"}
    return mdssd.create(f"mdssd{size}", 6, init=DEMO, **options).eval()


# A square input is what tests/detection/test_export.py exports.
SQUARE = pytest.param("352", marks=pytest.mark.nightly("exports a second network, ten seconds"))


@pytest.fixture(scope="module", params=[SQUARE, "448x320"])
def model(request):
    return demo(request.param)


def network_pixels(model, count):
    """Scenes of the size of the network's input."""
    width, height = width_height(model.input_size)
    data = SyntheticScenes(count, seed=3, image_size=max(width, height))
    return np.stack([data[k].image[:height, :width] for k in range(count)])


def expected(model, pixels):
    images = (torch.from_numpy(pixels) - torch.tensor(MEAN_RGB)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return ops.detection_output(*model(images), model.priors)


def test_weights_of_another_input_load_and_the_rest_is_named():
    model = demo("352")
    # 352: 44, 22, 11, 6, 3, 1. Only two deconvolutions have other kernels than those of 300.
    assert model.loaded.fresh == ("module1.high.4.weight", "module3.high.4.weight")
    assert model.loaded.layout == "a checkpoint of mdssd300"
    options = {"width": 0.125, "batch_norm": True, "prior_scales": "small"}
    loaded = mdssd.create("mdssd640", 6, init=DEMO, **options).loaded
    new = {".".join(name.split(".")[:2]) for name in loaded.fresh}
    # 640 has a layer more, and conv10_2 is now two below the top and has 6 priors in a cell.
    assert new == {
        "module1.high",
        "module3.high",
        "heads.conv10_2",
        "heads.conv12_2",
        "extras.conv12",
    }
    assert {"heads.module1.conf.weight", "heads.conv11_2.loc.weight"} <= set(loaded.taken)


def test_a_detector_finds_the_objects_of_a_photograph_of_any_size(model):
    """The demo's network has learnt objects of 7 to 45 pixels, whatever the input."""
    scene = SyntheticScenes(1, seed=3, image_size=400)[0]
    width, height = width_height(model.input_size)
    scene.image = scene.image[: 400 * height // width]  # so that nothing is stretched
    scene.boxes_xyxy = scene.boxes_xyxy[scene.boxes_xyxy[:, 3] < len(scene.image)]
    (found,) = Detector(model, classes=CLASSES)(scene.image)
    boxes = found["boxes"][found["scores"] > 0.5]
    best = ops.box_iou(torch.from_numpy(scene.boxes_xyxy).float(), boxes).amax(1)
    assert (best > 0.5).float().mean() > 0.6


def test_onnx_computes_the_same_as_the_network(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    export(model, tmp_path / "m.onnx", classes=CLASSES)
    pixels = network_pixels(model, 2)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", *pixels.shape[1:]]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["inputs"])
    height, width = pixels.shape[1:3]
    assert f"[batch, {height}, {width}, 3]" in facts["pixels"]
    assert f"resized as a whole to {width} x {height}" in facts["pixels"]
    got, want = session.run(None, {"pixels": pixels}), expected(model, pixels)
    assert want.count.min() > 5
    np.testing.assert_array_equal(got[3], want.count.numpy())
    np.testing.assert_allclose(got[1], want.scores.numpy(), rtol=1e-4, atol=1e-4)
    # Detections of almost the same score can be in another order.
    ours, theirs = (
        torch.cat((boxes, scores[..., None], labels[..., None].double()), 2)
        for boxes, scores, labels, _ in (map(torch.as_tensor, got), want)
    )
    apart = torch.cdist(ours.double(), theirs.double(), p=float("inf"))
    assert apart.amin(1).max() < 1e-3 and apart.amin(2).max() < 1e-3


def test_torch_export_computes_the_same_as_the_network(model, tmp_path):
    export(model, tmp_path / "m.pt2", form="pt2", classes=CLASSES)
    program = torch.export.load(tmp_path / "m.pt2").module()
    pixels = network_pixels(model, 1)
    for ours, theirs in zip(
        program(torch.from_numpy(pixels)), expected(model, pixels), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["mdssd640", "ssd448", "dssd416", "resnetssd288", "mdssd1024", "ssd512x256"]
)
def test_checkpoints(name, tmp_path):
    options = {"prior_scales": "coco"} if "dssd" in name else {"clip_priors": "size"}
    model = mdssd.create(name, 3, width=0.0625, **options)
    save_checkpoint(tmp_path / "best.json", model, classes=["a", "b"], mean=MEAN_RGB, extra={})
    again, meta = load_checkpoint(tmp_path)
    size = list(model.input_size) if "x" in name else model.input_size
    assert (meta["model"]["model"], meta["input_size"]) == (name, size)
    assert load_checkpoint(tmp_path, input_size=model.input_size)
    with pytest.raises(CheckpointError, match="is for another input size: expected"):
        load_checkpoint(tmp_path, input_size=(320, 288))
    assert type(again) is type(model) and again.config() == model.config()
    assert torch.equal(again.priors, model.priors)
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "text, size",
    [
        pytest.param("384", 384, marks=pytest.mark.nightly("the same path as that of 416x256")),
        ("416x256", [416, 256]),
    ],
)
def test_train_evaluate_and_detect(capsys, tmp_path, text, size):
    """The whole path at another input, and a resumed run."""
    out = tmp_path / "run"
    start = f"train --scenes 4 --width 0.0625 --threads 1 --workers 0 --out {out}".split()
    option = ["--input-size", text]
    assert cli.main([*start, *option, "--iterations", "2"]) == 0
    side = min(size) if isinstance(size, list) else size
    printed = capsys.readouterr().out
    assert f"model: mdssd{text}, width 0.0625" in printed and f"{side} x {side}" in printed
    meta = load_checkpoint(out)[1]
    assert (meta["model"]["model"], meta["input_size"]) == (f"mdssd{text}", size)
    assert cli.main([*start, *option, "--model", "mdssd300", "--resume", "--iterations", "3"]) == 0
    assert load_checkpoint(out)[1]["training"]["step"] == 3
    capsys.readouterr()
    assert cli.main([*start, "--resume", "--input-size", "288"]) == 2
    assert f"model (was 'mdssd{text}', is 'mdssd288')" in capsys.readouterr().err
    evaluation = ["eval", str(out), "--scenes", "2", "--threads", "1", "--out", f"{out}/test"]
    assert cli.main(evaluation) == 0
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.zeros((90, 200, 3), np.uint8))
    words = ["detect", str(out), str(photo), "--threads", "1"]
    assert cli.main([*words, "--out", str(tmp_path / "found")]) == 0


def test_a_run_with_another_input_starts_from_weights(capsys, tmp_path):
    words = "train --scenes 2 --input-size 320 --iterations 1 --batch-size 2 --threads 1"
    words += f" --workers 0 --init {DEMO} --out {tmp_path}/run"
    assert cli.main(words.split()) == 0
    text = capsys.readouterr().out
    assert f"tensors start from {DEMO}; the others are new: module" in text
    assert "model: mdssd320, width 0.125" in text


def test_data_is_checked_and_shown_for_the_input(capsys, tmp_path):
    words = "data check --scenes 2 --model ssd300 --input-size 416 --prior-scales coco"
    assert cli.main(words.split()) == 0
    text = capsys.readouterr().out
    assert "boxes in 416 x 416" in text and "priors of ssd416 (coco): 20.7, " in text
    words = f"data show --scenes 2 --count 2 --input-size 416 --out {tmp_path}/a.png"
    assert cli.main(words.split()) == 0
    assert cv2.imread(f"{tmp_path}/a.png").shape[1] > 2 * 416
    words = "data check --scenes 2 --input-size 512x288 --fit-priors"
    assert cli.main([*words.split(), "--out", f"{tmp_path}/check"]) == 0
    text = capsys.readouterr().out
    assert "boxes in 512 x 288" in text and "  128 x 72 cells, 4 px apart: " in text
    assert "of a 288 x 288 image, 100 x 100 px become 177.8 x 100.0" in text
    assert json.loads(Path(f"{tmp_path}/check/check.json").read_text())["input_size"] == [512, 288]
    words = f"data show --scenes 2 --count 2 --input-size 512x288 --out {tmp_path}/b.png"
    assert cli.main(words.split()) == 0
    assert cv2.imread(f"{tmp_path}/b.png").shape[1] > 2 * 512


def test_a_recipe_names_a_model_with_another_input(capsys, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('model = "ssd448"\nepochs = 1\n')
    assert cli.main(["train", "--recipe", str(path), "--print-recipe"]) == 0
    assert 'model = "ssd448"' in capsys.readouterr().out
    words = ["train", "--recipe", str(path), "--input-size", "512", "--print-recipe"]
    assert cli.main(words) == 0
    assert 'model = "ssd512"' in capsys.readouterr().out
    path.write_text('model = "ssd450"\n')
    assert cli.main(["train", "--recipe", str(path), "--print-recipe"]) == 2
    assert "model: expected one of mdssd300, mdssd512" in capsys.readouterr().err


def test_fitted_priors_are_chosen_anew_for_another_input(capsys, tmp_path):
    """Sizes in pixels of an input of 300 do not suit another."""
    sizes = [[[10 + k, 10] for k in range(n)] for n in (4, 4, 6, 6, 6, 4, 4)]
    path = tmp_path / "own.toml"
    path.write_text(f'model = "mdssd300"\nprior_scales = {sizes}\nepochs = 1\n')
    words = ["train", "--recipe", str(path), "--print-recipe"]
    assert cli.main(words) == 0
    assert "prior_scales = [[[10, 10]" in capsys.readouterr().out
    assert cli.main([*words, "--input-size", "320"]) == 0
    assert 'prior_scales = "auto"' in capsys.readouterr().out
    assert cli.main([*words, "--input-size", "320", "--prior-scales", "coco"]) == 0
    assert 'prior_scales = "coco"' in capsys.readouterr().out
