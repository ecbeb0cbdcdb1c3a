"""`evaluate` refuses early, compares classes by name, and says what it did and left out."""

import json
import re

import numpy as np
import pytest
import torch

from mdssd import Detector, __version__
from mdssd.cli import main
from mdssd.data import DataError, DetectionDataset, Sample, SyntheticScenes, VOCDataset, write_voc
from mdssd.evaluation import charts
from mdssd.evaluation.evaluate import evaluate, find_all, write_result
from mdssd.evaluation.result import EvalData, measure
from mdssd.models import MEAN_RGB
from mdssd.weights.checkpoint import save_checkpoint
from mdssd.weights.checkpoint_json import read_meta
from mdssd.zoo import ssd300

SCENES = SyntheticScenes(1).classes


class Photos(DetectionDataset):
    """Three black photographs: two objects of "car" in each, one of "van" in the last."""

    name = "photos"
    classes = ["bus", "car", "van"]
    image_ids = ["a", "b", "c"]

    def __getitem__(self, index):
        boxes = np.array([[5, 5, 45, 45], [60, 50, 90, 90], [10, 60, 40, 90]], np.float32)
        labels = np.array([2, 2, 3])
        if index < 2:
            boxes, labels = boxes[:2], labels[:2]
        image = np.zeros((100, 100, 3), np.uint8)
        return Sample(image, boxes, labels, np.zeros(len(labels), bool), self.image_ids[index])


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def detector(*classes):
    torch.manual_seed(0)
    return Detector(ssd300(len(classes) + 1, width=0.0625, batch_norm=True), classes=classes)


def no_detection(monkeypatch):
    """Make a detection fail the test."""

    def stream(*arguments, **options):
        raise AssertionError("detections were begun")

    monkeypatch.setattr(Detector, "stream", stream)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of the scenes' classes, in reverse order."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.json"
    torch.manual_seed(0)
    model = ssd300(6, width=0.0625, batch_norm=True)
    save_checkpoint(path, model, classes=SCENES[::-1], mean=MEAN_RGB, extra={})
    return path


@pytest.fixture
def voc(tmp_path):
    return write_voc(SyntheticScenes(3, seed=3, image_size=96), tmp_path / "set", split="test")


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- classes ------------------------------------------------------------------------------------


def test_classes_without_objects_need_not_be_known(tmp_path):
    result = evaluate(detector("van", "car"), Photos(), progress=False, out_dir=tmp_path)
    assert result.voc07.objects.tolist() == [1, 6] and result.left_out == {}
    result = evaluate(detector("tree", "van", "car"), Photos(), progress=False)
    assert result.voc07.objects.tolist() == [0, 1, 6]
    assert np.isnan(result.voc07.ap[0]) and np.isfinite(result.voc07.mean_ap)
    assert "no object of tree; not measured, and left out of the means" in result.table()


def test_objects_of_unknown_classes_are_refused_before_the_detection(monkeypatch):
    no_detection(monkeypatch)
    expected = (
        r"photos has objects of classes that the checkpoint lacks: van \(1 object\); the "
        r"checkpoint's classes are car, tram\. .*--allow-faults"
    )
    with pytest.raises(ValueError, match=expected):
        evaluate(detector("car", "tram"), Photos(), progress=False)


def test_objects_of_unknown_classes_can_be_left_out():
    result = evaluate(detector("car", "tram"), Photos(), progress=False, allow_faults=True)
    assert result.voc07.objects.tolist() == [6, 0] and result.images == 3
    assert result.left_out == {"van": 1} and result.to_dict()["left_out"]["objects"] == {"van": 1}
    assert "1 object left out, because the checkpoint lacks their classes: van (1)" in (
        result.table()
    )
    data = find_all(detector("tram"), Photos(), progress=False, allow_faults=True)
    assert data.left_out == {"car": 6, "van": 1}
    assert [len(one["boxes"]) for one in data.truth] == [0, 0, 0]


def test_the_command_compares_a_voc_folder_by_name(capsys, voc, checkpoint):
    path = voc / "Annotations" / "scene_000001.xml"
    path.write_text(path.read_text().replace(SCENES[0], "moon"))
    status, _, err = run(capsys, "eval", checkpoint, "--data", voc, "--split", "test")
    assert status == 2 and "has objects of classes that the checkpoint lacks: moon (" in err
    assert "Annotations" not in err.splitlines()[-1]


def test_a_checkpoint_of_other_classes_is_not_measured_on_scenes(capsys, tmp_path):
    path = tmp_path / "last.json"
    model = ssd300(3, width=0.0625)
    save_checkpoint(path, model, classes=["cell", "disc"], mean=MEAN_RGB, extra={})
    status, _, err = run(capsys, "eval", path, "--scenes", 1)
    assert status == 2 and "--scenes: expected a checkpoint of the scenes' classes" in err
    assert "its classes are cell, disc; --data measures" in err


# --- refusals that do not come late -------------------------------------------------------------


def test_names_that_the_server_cannot_read_are_refused_early(
    capsys, tmp_path, monkeypatch, voc, checkpoint
):
    no_detection(monkeypatch)
    for folder in ("Annotations", "JPEGImages"):
        (file,) = (voc / folder).glob("scene_000002.*")
        file.rename(file.with_stem("my photo"))
    (voc / "ImageSets/Main/test.txt").write_text("scene_000000\nscene_000001\nmy photo\n")
    command = ["eval", checkpoint, "--data", voc, "--split", "test", "--submit", "voc"]
    status, out, err = run(capsys, *command, "--out", tmp_path / "out")
    assert status == 2 and "1 of the 3 images have such names, the first is 'my photo'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a file", "a file/within"])
def test_a_folder_that_cannot_be_written_is_refused_early(
    capsys, tmp_path, monkeypatch, checkpoint, name
):
    no_detection(monkeypatch)
    (tmp_path / "a file").write_text("")
    status, _, err = run(capsys, "eval", checkpoint, "--scenes", 1, "--out", tmp_path / name)
    assert status == 2 and f"expected a folder, but {tmp_path / 'a file'} is an empty file" in err
    with pytest.raises(OSError, match=re.escape(name)):
        evaluate(detector("car", "van"), Photos(), progress=False, out_dir=tmp_path / name)


def test_a_score_threshold_that_is_no_number_is_refused_early(monkeypatch):
    no_detection(monkeypatch)
    with pytest.raises(ValueError, match="score_threshold: expected a number, got nan"):
        evaluate(detector("car", "van"), Photos(), progress=False, score_threshold=float("nan"))


# --- images that cannot be read -----------------------------------------------------------------


def test_an_unreadable_image_is_an_error_or_left_out(voc):
    names = SyntheticScenes(1).classes
    whole = VOCDataset(voc, "test", names)
    damaged = VOCDataset(voc, "test", names)
    image = damaged.image_path(1)
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{re.escape(str(image))}.*--allow-faults"):
        evaluate(detector(*names), damaged, progress=False)
    result = evaluate(detector(*names), damaged, progress=False, allow_faults=True)
    assert result.images == 2 and len(result.failed) == 1 and str(image) in result.failed[0]
    objects = [len(whole.annotation(k).labels) for k in range(3)]
    assert result.voc07.objects.sum() == objects[0] + objects[2]
    assert "1 unreadable image left out" in result.table()


# --- what was measured --------------------------------------------------------------------------


def test_the_files_say_what_was_measured(capsys, tmp_path, voc, checkpoint):
    out = tmp_path / "out"
    command = ["eval", checkpoint, "--data", voc, "--split", "test", "--workers", 0, "--out", out]
    status, text, _ = run(capsys, *command, "--score-threshold", "0.3")
    assert status == 0
    stored = json.loads((out / "evaluation.json").read_text())
    about = stored["about"]
    assert about["command"] == " ".join(["mdssd", *map(str, command), "--score-threshold", "0.3"])
    digest = read_meta(checkpoint)["sha256"]
    assert about["checkpoint"] == {"path": str(checkpoint), "sha256": digest}
    assert about["model"]["model"] == "ssd300" and about["model"]["input_size"] == 300
    assert about["model"]["prior_scales"] == "voc" and about["model"]["priors"] == 8732
    assert about["data"]["path"] == str(voc) and about["data"]["split"] == "test"
    assert about["data"]["images"] == 3 and about["thresholds"]["score"] == 0.01
    assert about["versions"]["mdssd"] == __version__
    assert about["versions"]["torch"] == torch.__version__
    assert about["device"].startswith("cpu") and about["date"].endswith(" UTC")
    page = (out / "report.html").read_text()
    for fact in (str(checkpoint), digest[:12], "ssd300", str(voc), "split test", about["date"]):
        assert fact in page
    count = stored["detections_shown"]
    assert f"{count:,} with 0.3 or more" in text and "with a score of 0.01 or more" in text


def test_the_detections_at_the_threshold_are_counted():
    model = detector("car", "van")
    data = find_all(model, Photos(), progress=False)
    scores = np.concatenate([one["scores"] for one in data.detections])
    middle = float(np.median(scores))
    result = evaluate(model, Photos(), progress=False, score_threshold=middle)
    assert result.shown == (scores >= middle).sum() < len(scores)
    assert result.voc07.detections.sum() == len(scores) and result.lowest_score == 0.01


# --- many classes -------------------------------------------------------------------------------


def many_classes(count, folder):
    """Write the report of `count` classes, a tenth of which have two objects instead of one."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 80, (count + count // 10, 2))
    boxes = np.hstack([corner, corner + 15]).astype(np.float32)
    labels = np.concatenate([np.arange(count), np.arange(count // 10) + count // 2]) + 1

    class Many(Photos):
        classes = [f"class {k}" for k in range(count)]
        image_ids = ["a"]

        def __getitem__(self, index):
            image = np.zeros((100, 100, 3), np.uint8)
            return Sample(image, boxes, labels, np.zeros(len(labels), bool), "a")

    found = {"boxes": boxes[:count], "labels": labels[:count], "scores": np.ones(count)}
    data = EvalData([found], [{"boxes": boxes, "labels": labels}], {})
    result = measure(data, Many(), Many.classes)
    write_result(result, data, Many(), folder)
    return result, (folder / "report.html").read_text()


def test_charts_and_confusion_matrix_of_many_classes_are_limited(tmp_path, monkeypatch):
    drawn = []
    for name in ("size_chart", "curve_chart"):
        plain = getattr(charts, name)
        monkeypatch.setattr(charts, name, lambda *a, plain=plain: drawn.append(a[3]) or plain(*a))
    result, page = many_classes(250, tmp_path)
    assert drawn == [list(range(125, 145))] * 4  # those with most objects, light and dark
    assert "These are the 20 classes with most objects. The other 230 classes" in page
    matrix = page[page.index('<table class="confusion">') :]
    matrix = matrix[: matrix.index("</table>")]
    rows = [re.findall(r">(\d*)</td>", row) for row in matrix.split("<tr>")[2:]]
    cells = np.array([[int(cell or 0) for cell in row] for row in rows])
    assert cells.shape == (31, 31) and cells.sum() == result.confusion.sum()
    # 29 classes stand alone, of which 25 have two objects; each class has one found object.
    assert cells.diagonal().tolist() == [0, *[1] * 29, 250 - 29]
    assert cells[1:, 0].sum() == 25
    assert page.count("<tr><th>class 249</th>") == 4  # the tables have all classes
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(stored["voc07"]["AP"]) == 250 and len(stored["confusion"]["matrix"]) == 251


@pytest.mark.nightly("takes ten seconds")
def test_the_report_of_a_thousand_classes_is_small(tmp_path):
    many_classes(1000, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
