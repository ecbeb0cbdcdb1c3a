"""Quantisation to int8: what it writes, what it prints, and which layers stay in float32."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mdssd import cli, ssd300
from mdssd.data import DetectionDataset, Sample, SyntheticScenes
from mdssd.data.dataset import DataPart
from mdssd.detection.detector import Detector
from mdssd.detection.quantized import load_network
from mdssd.evaluation.evaluate import find_all
from mdssd.evaluation.result import measure
from mdssd.quantization import quantize as module
from mdssd.quantization.calibration import Inputs
from mdssd.quantization.quantize import check_packages, quantize
from mdssd.quantization.result import NetworkFacts, QuantizeResult
from mdssd.weights.checkpoint import save_checkpoint

CLASSES = SyntheticScenes(1).classes
MEAN = (123.0, 117.0, 104.0)


def small_model():
    torch.manual_seed(0)
    model = ssd300(len(CLASSES) + 1, width=0.0625)
    torch.nn.init.ones_(model.conv4_3_scale)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "small.json"
    extra = {"arguments": {"orientation": "stored"}}
    save_checkpoint(path, small_model(), classes=CLASSES, mean=MEAN, extra=extra)
    return path


def needs_nncf():
    pytest.importorskip("nncf", reason="nncf is not installed (the extra int8)")


class Blank(DetectionDataset):
    """An image without objects."""

    name, classes, image_ids = "blank", CLASSES, ["only"]

    def __getitem__(self, index):
        nothing = np.zeros(0, np.int64)
        boxes = np.zeros((0, 4), np.float32)
        return Sample(np.zeros((300, 300, 3), np.uint8), boxes, nothing, nothing > 0, "only")


# --- calibration ---------------------------------------------------------------------------------


def test_inputs_are_those_of_a_detector():
    scenes = SyntheticScenes(4)
    model = small_model()
    inputs = Inputs(model, scenes, 2, workers=0, mean=MEAN)
    first, again = list(inputs), list(inputs)
    assert len(first) == len(again) == len(inputs) == 2
    detector = Detector(model, mean=MEAN)
    for one, same, index in zip(first, again, (0, 2), strict=True):  # at equal distances
        want = detector._pipeline.network_input([scenes[index].image]).numpy()
        np.testing.assert_array_equal(one["images"], want)
        np.testing.assert_array_equal(same["images"], want)


def test_inputs_are_tiles_if_the_detector_has_tiles():
    options = {"tile": 200, "overlap": 0.0, "mean": MEAN, "workers": 0}
    tiles = list(Inputs(small_model(), SyntheticScenes(2), 5, **options))
    assert [one["images"].shape for one in tiles] == [(1, 3, 300, 300)] * 5
    assert len({one["images"].tobytes() for one in tiles}) == 5


# --- the whole -----------------------------------------------------------------------------------


def test_the_command_writes_a_checkpoint_and_prints_both_sides(checkpoint, tmp_path, capsys):
    needs_nncf()
    out = tmp_path / "new" / "int8"
    words = ["quantize", checkpoint, "--scenes", 3, "--images", 2, "--workers", 0, "--out", out]
    assert cli.main([*map(str, words)]) == 0
    text = capsys.readouterr().out
    assert "float32: COCO AP 0." in text and f"written: {out}.json" in text
    assert "35 layers in int8, 0 in float32\n" in text and "More is lost" not in text
    heads = "AP AP50 small medium large file latency".split()
    assert any(line.split() == heads for line in text.splitlines())
    meta = json.loads(out.with_suffix(".json").read_text())
    assert meta["training"]["arguments"] == {"orientation": "stored"}
    facts = meta["training"]["quantized"]
    assert facts["max_drop"] == 0.005 and facts["calibration_images"] == 2
    network, _ = load_network(out.with_suffix(".json"))
    assert b"mdssd/models" not in network.onnx  # where the code was on this machine
    found = Detector.from_checkpoint(out.with_suffix(".json"))(SyntheticScenes(1)[0].image)
    want = Detector.from_checkpoint(checkpoint)(SyntheticScenes(1)[0].image)
    difference = found[0]["scores"][:20] - want[0]["scores"][:20]
    assert 0 < difference.abs().max() < 0.05  # int8 rounds


def test_layers_that_cost_too_much_stay_in_float32(checkpoint, tmp_path, monkeypatch):
    needs_nncf()
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    heads = {"heads.conv7.conf", "heads.conv7.loc"}
    names, asked = {}, []
    layer_names = module._layer_names
    monkeypatch.setattr(
        module, "_layer_names", lambda proto: names.update(layer_names(proto)) or names
    )

    def validate(job, proto, places):
        """AP is that of float32 once the heads of conv7 are in float32."""
        places = list(places)
        left = {names[node] for node in module._int8_nodes(proto)} & heads
        asked.append(len(places))
        return 1 - 0.1 * len(left), [-float(len(left))] * len(places)

    monkeypatch.setattr(module._Job, "validate", validate)
    scenes = SyntheticScenes(3)
    lines = []
    result = quantize(
        checkpoint, tmp_path / "a", calibration=scenes, validation=scenes, max_drop=0.05, images=1,
        workers=0, report=lines.append,
    )  # fmt: skip
    assert set(result.float_layers) >= heads and len(result.float_layers) < 6
    assert not heads & set(result.int8_layers)
    assert f"{len(result.float_layers)} in float32: " in result.table()
    network = onnx.load_from_string(load_network(result.path)[0].onnx)
    assert len(module._int8_nodes(network)) == len(result.int8_layers)
    assert max(asked) == 3


def test_the_table_says_if_the_stored_network_has_lost_too_much():
    scenes = SyntheticScenes(2)
    detector = Detector(small_model(), classes=CLASSES, mean=MEAN)
    figures = measure(find_all(detector, scenes, workers=0), scenes, CLASSES)
    facts = NetworkFacts(figures, 1000, 0.1)
    result = QuantizeResult(Path("a.json"), facts, facts, ["conv"], [], 0.0, 1)
    assert result.drop == 0 and "More is lost" not in result.table()
    assert "COCO AP lost: 0.0000, a loss of at most 0 was allowed" in result.table()
    assert "More is lost than was allowed" in replace(result, max_drop=-0.001).table()


# --- wrong input ---------------------------------------------------------------------------------


def test_layers_count_as_int8_through_what_only_moves_numbers():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    node = onnx.helper.make_node
    scale = ["scale", "zero"]
    nodes = [
        node("DequantizeLinear", ["a", *scale], ["x"]),
        node("DequantizeLinear", ["w", *scale], ["weight"]),
        node("Resize", ["x", "", "twice"], ["large"]),
        node("MaxPool", ["large"], ["pooled"], kernel_shape=[2, 2]),
        node("Slice", ["pooled", "from", "to"], ["part"]),
        node("Relu", ["pooled"], ["positive"]),
        node("Conv", ["pooled", "weight"], ["y"], name="int8"),
        node("Conv", ["positive", "weight"], ["z"], name="float input"),
        node("Conv", ["pooled", "float_weight"], ["u"], name="float weight"),
        node("Conv", ["part", "weight"], ["v"], name="behind a slice"),
    ]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "test", [], []))
    assert module._int8_nodes(proto) == {"int8"}


@pytest.mark.parametrize("missing", ["nncf", "onnxruntime"])
def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing != "nncf":
        needs_nncf()
    with pytest.raises(ImportError, match=f"the extra int8, of which {missing} is missing: pip"):
        check_packages()
    words = ["quantize", checkpoint, "--scenes", "2", "--out", tmp_path / "a"]
    assert cli.main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mdssd: error: quantize: needs the packages of the extra int8")
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "expected --data DIR|FILE"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--scenes", "2", "--max-drop", "-0.1"], "--max-drop: expected a number from 0 to 1"),
        (["--scenes", "2", "--out", "taken"], "taken.json: exists already; name another --out"),
    ],
)
def test_wrong_options_are_one_line(checkpoint, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mdssd.cli.commands.quantize.check_packages", lambda: None)
    (tmp_path / "taken.json").write_text("kept")
    out = [] if "--out" in words else ["--out", "new"]
    assert cli.main(["quantize", str(checkpoint), *out, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "taken.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]


def test_tiles_of_the_training_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mdssd.cli.commands.quantize.check_packages", lambda: None)
    extra = {"recipe": {"tile": 200, "tile_scale": 2.0}}
    save_checkpoint(tmp_path / "a.json", small_model(), classes=CLASSES, mean=MEAN, extra=extra)
    words = [
        "quantize",
        str(tmp_path / "a.json"),
        "--data",
        "nowhere",
        "--out",
        str(tmp_path / "b"),
    ]
    for more in ([], ["--tile", "200"]):
        assert cli.main([*words, *more]) == 2
        line = (
            "the checkpoint was trained on tiles; --tile 200 --tile-scale 2 shows it images as in"
        )
        assert (line in capsys.readouterr().out) != bool(more)


def test_wrong_arguments_are_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "check_packages", lambda: None)
    scenes = SyntheticScenes(2)
    data = {"calibration": scenes, "validation": scenes}
    out = tmp_path / "a"
    for wrong, message in (
        ({"max_drop": -0.1}, "max_drop: expected a number from 0 to 1, got -0.1"),
        ({"max_drop": float("nan")}, "max_drop: expected a number"),
        ({"max_drop": "0.1"}, "max_drop: expected a number from 0 to 1, got '0.1'"),
        ({"images": 0}, "images: expected an int of 1 or more, got 0"),
        ({"calibration": DataPart(scenes, [])}, "calibration: expected images"),
        ({"validation": DataPart(scenes, [])}, "validation: expected images"),
        ({"validation": Blank()}, "validation: expected objects to measure AP"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(checkpoint, out, **{**data, **wrong})
    other = SyntheticScenes(1)
    other.classes = [f"other {name}" for name in other.classes]
    with pytest.raises(ValueError, match="has objects of classes that the checkpoint lacks"):
        quantize(checkpoint, out, calibration=scenes, validation=other)
    with pytest.raises(ValueError, match="expected objects to measure AP"):
        quantize(checkpoint, out, calibration=scenes, validation=other, allow_faults=True)
    for name in data:
        with pytest.raises(
            TypeError, match=f"quantize: {name}: expected a DetectionDataset, got str"
        ):
            quantize(checkpoint, out, **{**data, name: "folder"})
    network = b"of an int8 network"

    def fail(model):
        raise RuntimeError("no such operator\n\nmany more lines")

    with monkeypatch.context() as patch:
        patch.setattr(module, "network_proto", fail)
        message = "ssd300 with trunk vgg16 cannot be written as ONNX: no such operator$"
        with pytest.raises(ValueError, match=message):
            quantize(checkpoint, out, **data)
    int8 = tmp_path / "int8.json"
    save_checkpoint(int8, small_model(), classes=CLASSES, mean=MEAN, extra={}, network=network)
    with pytest.raises(ValueError, match="can neither be trained nor quantised again"):
        quantize(int8, out, **data)
    assert not out.with_suffix(".json").exists()
