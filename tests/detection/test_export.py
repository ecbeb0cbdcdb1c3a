"""An exported file returns the detections that the operators return."""

import contextlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mdssd
from mdssd import cli, ops
from mdssd.cli.commands import export as export_command
from mdssd.data.synthetic import SyntheticScenes
from mdssd.detection.detector import Detector
from mdssd.detection.export import export
from mdssd.detection.onnx import _detection_nodes
from mdssd.names import EXPORTS
from mdssd.weights.checkpoint import load_checkpoint

CHECKPOINT = Path(__file__).parents[2] / "demo/mdssd300-shapes.json"
CLASSES = SyntheticScenes(1).classes
MEAN = (123.0, 117.0, 104.0)


def scenes(count):
    """Return the pixels of generated scenes, uint8 [count, 300, 300, 3]."""
    data = SyntheticScenes(count, seed=3)
    return np.stack([data[k].image for k in range(count)])


def expected(model, pixels, mean=MEAN, **settings):
    images = (torch.from_numpy(pixels) - torch.tensor(mean)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return ops.detection_output(*model(images), model.priors, **settings)


def assert_same(got, want):
    """Compare rows and their order, except where rounding in the network can change them."""
    boxes, scores, labels, count = (np.asarray(value) for value in got)
    assert labels.dtype == count.dtype == np.int64
    np.testing.assert_array_equal(count, want.count.numpy())
    np.testing.assert_array_equal(labels, want.labels.numpy())
    np.testing.assert_allclose(scores, want.scores.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(boxes, want.boxes.numpy(), rtol=1e-4, atol=1e-4)
    assert count.min() > 0


def session(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(CHECKPOINT)[0]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """The demo's network, exported by the command."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert cli.main(["export", str(CHECKPOINT), "--out", str(path)]) == 0
    assert text.getvalue() == f"written: {path} (onnx)\n"
    return path


def test_onnx_returns_the_same_detections_for_any_batch(model, onnx_file):
    run = session(onnx_file).run
    pixels = scenes(3)
    for batch in (pixels, pixels[:1], pixels[1:]):
        assert_same(run(None, {"pixels": batch}), expected(model, batch))


def test_onnx_file_describes_its_inputs_and_outputs(onnx_file):
    onnx = pytest.importorskip("onnx")
    loaded = session(onnx_file)
    (pixels,) = loaded.get_inputs()
    assert (pixels.name, pixels.type) == ("pixels", "tensor(uint8)")
    assert pixels.shape == ["batch", 300, 300, 3]
    outputs = {o.name: (o.type, o.shape) for o in loaded.get_outputs()}
    assert outputs == {
        "boxes": ("tensor(float)", ["batch", 200, 4]),
        "scores": ("tensor(float)", ["batch", 200]),
        "labels": ("tensor(int64)", ["batch", 200]),
        "count": ("tensor(int64)", ["batch"]),
    }
    facts = {k: json.loads(v) for k, v in loaded.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"] == CLASSES
    assert facts["mean"] == list(MEAN)
    assert facts["input_size"] == 300
    assert (facts["score_threshold"], facts["nms_threshold"]) == (0.01, 0.45)
    assert facts["channels"] == "RGB"
    graph = onnx.load(onnx_file).graph
    for place, values in (("inputs", graph.input), ("outputs", graph.output)):
        assert {value.name: value.doc_string for value in values} == facts[place]
    assert "channels RGB (OpenCV reads BGR" in facts["inputs"]["pixels"]
    assert "resized as a whole to 300 x 300" in facts["inputs"]["pixels"]
    assert "subtracts the mean itself" in facts["inputs"]["pixels"]
    assert "fractions of the image's width and height" in facts["outputs"]["boxes"]
    description = loaded.get_modelmeta().description
    assert all(text in description for text in (facts["inputs"] | facts["outputs"]).values())
    nodes = graph.node
    assert "NonMaxSuppression" in {node.op_type for node in nodes}
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}


def outputs_with_ties(images, priors, classes):
    """Return loc, logits and overlapping priors. The scores tie often, and one logit is NaN.

    There are only twelve different rows of logits, and classes 2 and 4 are equal in each.
    """
    generator = torch.Generator().manual_seed(5)
    loc = torch.randn(images, priors, 4, generator=generator) * 0.5
    kinds = torch.randn(12, classes, generator=generator) * 2
    kinds[:, 4] = kinds[:, 2]
    logits = kinds[torch.randint(0, 12, (images, priors), generator=generator)]
    logits[0, 3, 1] = torch.nan
    centre = torch.rand(priors, 2, generator=generator)
    size = torch.rand(priors, 2, generator=generator) * 0.2 + 0.05
    return loc, logits, torch.cat([centre, size], 1)


@pytest.mark.parametrize(
    "priors, settings",
    [
        (700, {}),  # more candidates than top_k, more detections than fit
        (60, {}),  # fewer than both
        (700, {"top_k": 50, "max_detections": 30, "score_threshold": 0.3}),
        (700, {"nms_threshold": 0.0, "score_threshold": 0.0}),
        (60, {"score_threshold": 1.0}),
    ],
)
def test_onnx_post_processing_agrees_to_the_row_where_scores_tie(priors, settings):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    loc, logits, boxes = outputs_with_ties(2, priors, len(CLASSES) + 1)
    settings = {
        "score_threshold": 0.01,
        "nms_threshold": 0.45,
        "top_k": 400,
        "max_detections": 200,
        **settings,
    }
    constants, nodes = _detection_nodes(boxes, {"classes": CLASSES, **settings})
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [info(n, 1, v.shape) for n, v in (("loc", loc), ("logits", logits))],
        [info(n, k, None) for n, k in (("boxes", 1), ("scores", 1), ("labels", 7), ("count", 7))],
        [onnx.numpy_helper.from_array(v.numpy(), n) for n, v in constants.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    proto.ir_version = 9
    inputs = {"loc": loc.numpy(), "logits": logits.numpy()}
    found = session(proto.SerializeToString()).run(None, inputs)
    with ops.backend("reference"):
        want = ops.detection_output(loc, logits, boxes, **settings)
    for got, value in zip(found, want, strict=True):
        # The graph has at most one row per prior and class.
        np.testing.assert_allclose(got, value[:, : got.shape[1]] if got.ndim > 1 else value, 1e-5)
    assert settings["score_threshold"] == 1 or want.count.min() > 20


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_file_names_no_folder_of_this_machine(model, tmp_path, form):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    export(model, tmp_path / "m", form=form, classes=CLASSES, mean=MEAN)
    data = (tmp_path / "m").read_bytes()
    if form == "pt2":
        with zipfile.ZipFile(tmp_path / "m") as file:
            data = b"".join(map(file.read, file.namelist()))
    for module in (mdssd, torch):
        assert str(Path(module.__file__).parent).encode() not in data


def test_pt2_is_a_program_for_any_batch(model, tmp_path):
    export(model, tmp_path / "m.pt2", form="pt2", classes=CLASSES, mean=MEAN, score_threshold=0.1)
    files = {"mdssd.json": ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=files)
    # A compiled package stores infinity as a word and can then not be loaded.
    numbers = [x for node in loaded.graph.nodes for x in node.args if isinstance(x, float)]
    assert numbers and np.isfinite(numbers).all()
    program = loaded.module()
    facts = json.loads(files["mdssd.json"])
    assert facts["classes"] == CLASSES
    assert facts["inputs"]["pixels"].startswith("[batch, 300, 300, 3] uint8, 0-255, channels RGB")
    pixels = scenes(3)
    for batch in (pixels, pixels[:1]):
        want = expected(model, batch, score_threshold=0.1)
        assert_same(program(torch.from_numpy(batch)), want)


@pytest.mark.parametrize(
    ("name", "options", "form"),
    [
        ("m.pt2", [], "pt2"),
        ("m.PT2", [], "pt2"),
        ("m.onnx", [], "onnx"),
        ("m.bin", [], "onnx"),
        ("m.pt2", ["--format", "onnx"], "onnx"),
        ("m.pt2", ["--format", "aoti"], "aoti"),
    ],
)
def test_the_ending_decides_the_format_if_it_is_not_given(
    tmp_path, monkeypatch, capsys, name, options, form
):
    forms = []
    monkeypatch.setattr(export_command, "export", lambda *args, form, **kw: forms.append(form))
    out = tmp_path / "new folder" / name
    assert cli.main(["export", str(CHECKPOINT), "--out", str(out), *options]) == 0
    assert forms == [form]
    assert out.parent.is_dir()
    assert capsys.readouterr().out == f"written: {out} ({form})\n"


@pytest.mark.nightly("compiles for a minute")
def test_aoti_package_runs(model, tmp_path):
    export(model, tmp_path / "m.pt2", form="aoti", classes=CLASSES, mean=MEAN)
    package = torch._inductor.aoti_load_package(str(tmp_path / "m.pt2"))
    texts = package.get_metadata()  # with PyTorch's own, which are not JSON
    facts = {name: json.loads(text) for name, text in texts.items() if name[:5] != "AOTI_"}
    assert facts["classes"] == CLASSES
    assert "channels RGB" in facts["inputs"]["pixels"]
    pixels = scenes(2)
    for batch in (pixels, pixels[:1]):
        assert_same(package(torch.from_numpy(batch)), expected(model, batch))


def test_detector_finds_the_same(onnx_file):
    pixels = scenes(1)
    boxes, scores, _, (count,) = session(onnx_file).run(None, {"pixels": pixels})
    found = Detector.from_checkpoint(CHECKPOINT)(pixels[0])[0]
    edges = np.clip(boxes[0, :count] * 300, 0, 300)
    inside = (edges[:, 2:] > edges[:, :2]).all(1)
    np.testing.assert_allclose(edges[inside], found["boxes"], rtol=1e-4, atol=0.01)
    np.testing.assert_allclose(scores[0, :count][inside], found["scores"], rtol=1e-4)
    for form in EXPORTS:  # the command accepts every format of export
        cli.make_parser().parse_args(["export", "x", "--out", "y", "--format", form])


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"form": "tflite"}, ValueError, "form: expected one of .* got 'tflite'"),
        ({"classes": ["a"]}, ValueError, "classes: expected 5 names"),
        ({"nms_threshold": 2}, ValueError, "nms_threshold"),
        ({"mean": (1.0, 2.0)}, ValueError, "mean: expected three finite numbers, got"),
        ({"top_k": 0}, ValueError, "top_k: expected 1 to 9223372036854775807, got 0"),
        ({"max_detections": 1.5}, TypeError, "max_detections: expected an int"),
    ],
)
def test_bad_arguments_write_nothing(model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export(model, tmp_path / "m.onnx", **{"classes": CLASSES, **options})
    assert not list(tmp_path.iterdir())


def test_without_onnx(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        export(model, tmp_path / "m.onnx", classes=CLASSES)
    assert not list(tmp_path.iterdir())
