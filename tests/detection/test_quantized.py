"""A checkpoint of an int8 network detects, is exported, and is refused where it cannot be used.

These tests need no NNCF: the network that they store is in float32, which nothing here can tell.
"""

import json

import numpy as np
import pytest
import torch

from mdssd import cli, ssd300
from mdssd.detection.detector import Detector
from mdssd.detection.export import export
from mdssd.detection.onnx import network_proto
from mdssd.detection.quantized import load_network
from mdssd.models.folding import fold_batch_norm
from mdssd.weights.checkpoint import load_checkpoint, load_quantized, save_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, read_meta

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytest.importorskip("openvino", reason="openvino is not installed")

MEAN = (120.0, 110.0, 100.0)
FACTS = {"classes": ["cat", "dog"], "mean": MEAN, "extra": {}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ssd300(3, width=0.0625)
    torch.nn.init.ones_(model.conv4_3_scale)  # otherwise its scores are all alike
    fold_batch_norm(model.eval())
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "small.json"
    network = network_proto(model).SerializeToString()
    save_checkpoint(path, model, **FACTS, network=network)
    return path


def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (60 + n, 90, 3), np.uint8) for n in range(3)]


def test_it_detects_what_its_network_computes(model, checkpoint):
    options = {"score_threshold": 0.34, "max_detections": 5, "batch_size": 2}
    eager = Detector(model, classes=["cat", "dog"], mean=MEAN, **options)
    for path in (checkpoint, *checkpoint.parent.glob("*.onnx")):
        other = Detector.from_checkpoint(path, **options)
        assert (other.classes, other.device.type) == (["cat", "dog"], "cpu")
        for got, want in zip(other(photos()), eager(photos()), strict=True):
            assert len(want["labels"]) and torch.equal(got["labels"], want["labels"])
            torch.testing.assert_close(got["scores"], want["scores"], rtol=0, atol=1e-5)
            torch.testing.assert_close(got["boxes"], want["boxes"], rtol=0, atol=1e-2)


def test_its_json_has_the_model_and_its_network_is_onnx(model, checkpoint):
    meta = read_meta(checkpoint)
    assert meta["model"] == json.loads(json.dumps(model.config()))
    assert meta["weights"].endswith(".onnx") and (checkpoint.parent / meta["weights"]).exists()
    empty, again, network = load_quantized(checkpoint)
    assert again == meta and len(network) == meta["bytes"]
    assert torch.equal(empty.priors, model.priors)
    loaded, _ = load_network(checkpoint)
    assert loaded.config() == {**model.config(), "quantized": "int8"}


def test_another_save_removes_the_old_network(model, tmp_path):
    path = tmp_path / "a.json"
    for network in (b"first", b"second"):
        save_checkpoint(path, model, **FACTS, network=network)
        assert [file.read_bytes() for file in tmp_path.glob("*.onnx")] == [network]
    save_checkpoint(path, model, **FACTS)
    assert not list(tmp_path.glob("*.onnx")) and len(list(tmp_path.glob("*.safetensors"))) == 1


def test_damage_is_named(checkpoint, tmp_path):
    meta = read_meta(checkpoint)
    for name in (checkpoint.name, meta["weights"]):
        (tmp_path / name).write_bytes((checkpoint.parent / name).read_bytes())
    network = tmp_path / meta["weights"]
    content = network.read_bytes()
    for damaged, message in (
        (content[:-1], "is cut short"),
        (content + b"a", "instead of"),
        (content[:-1] + bytes([content[-1] ^ 1]), "its SHA-256 differs"),
        (None, "no such file, though"),
    ):
        network.unlink()
        if damaged is not None:
            network.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            Detector.from_checkpoint(tmp_path / checkpoint.name)
        network.touch()


def test_what_it_cannot_do_is_said(model, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="is an int8 network, which detects"):
        load_checkpoint(checkpoint)
    for runtime in ("compile", "graph"):
        with pytest.raises(ValueError, match=f"runs in 'openvino' only, got '{runtime}'"):
            Detector.from_checkpoint(checkpoint, runtime=runtime)
    with pytest.raises(ValueError, match="'openvino' needs a cpu device, got cuda"):
        Detector.from_checkpoint(checkpoint, device="cuda")
    with pytest.raises(ValueError, match="can be exported as 'onnx', got 'pt2'"):
        export(load_network(checkpoint)[0], tmp_path / "a.pt2", form="pt2", classes=["a", "b"])
    save_checkpoint(tmp_path / "float.json", model, **FACTS)
    with pytest.raises(CheckpointError, match="is not an int8 network"):
        load_quantized(tmp_path / "float.json")


def test_a_network_that_is_no_onnx_is_named(model, tmp_path):
    save_checkpoint(tmp_path / "a.json", model, **FACTS, network=b"nothing of the kind")
    detector = Detector.from_checkpoint(tmp_path / "a.json")
    with pytest.raises(ValueError, match="OpenVINO cannot read the int8 network: ") as raised:
        detector(photos())
    assert "\n" not in str(raised.value)


def test_commands_take_it(checkpoint, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "a.onnx"
    assert cli.main(["export", str(checkpoint), "--out", str(out)]) == 0
    photo = photos()[0]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    detector = Detector.from_checkpoint(checkpoint)
    pixels = detector._preprocess.warp(photo)[None]
    boxes, scores, _, count = session.run(None, {"pixels": pixels})
    (want,) = detector(photo)
    assert count[0] == 200
    np.testing.assert_allclose(scores[0][:50], want["scores"][:50], atol=1e-4)
    assert cli.main(["eval", str(checkpoint), "--scenes", "2"]) == 2
    output = capsys.readouterr()
    assert "device: cpu" in output.out and "--scenes: expected a checkpoint of the" in output.err
