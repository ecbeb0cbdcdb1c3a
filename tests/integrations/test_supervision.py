"""Detections to and from supervision: the package itself if it is installed, and a stand-in."""

import importlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from mdssd.integrations.supervision import from_supervision, to_supervision

CLASSES = ["cat", "dog", "bird"]


@pytest.fixture(params=["stand-in", "supervision"])
def supervision(request, monkeypatch):
    if request.param == "stand-in":
        package = importlib.import_module("codebases.supervision")
        monkeypatch.setitem(sys.modules, "supervision", package)
        return package
    return pytest.importorskip("supervision", reason="supervision is not installed")


def some():
    return {
        "boxes": torch.tensor([[10.0, 20.0, 30.5, 40.25], [0.0, 0.0, 5.0, 6.0]]),
        "scores": torch.tensor([0.9, 0.25]),
        "labels": torch.tensor([3, 1]),
    }


def same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_to_supervision_and_back(supervision):
    found = some()
    detections = to_supervision(found, CLASSES)
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[10, 20, 30.5, 40.25], [0, 0, 5, 6]]
    assert detections.class_id.tolist() == [2, 0]
    assert detections.confidence.tolist() == [np.float32(0.9), 0.25]
    assert detections.data["class_name"].tolist() == ["bird", "cat"]
    same(from_supervision(detections), found)
    same(
        from_supervision(detections[detections.confidence > 0.5]),
        {k: v[:1] for k, v in found.items()},
    )


def test_changes_on_one_side_do_not_reach_the_other(supervision):
    detections = to_supervision(some(), CLASSES)
    back = from_supervision(detections)
    detections.xyxy += 1
    same(back, some())


def test_nothing_found(supervision):
    empty = {k: v[:0] for k, v in some().items()}
    detections = to_supervision(empty, CLASSES)
    assert len(detections) == 0
    same(from_supervision(detections), empty)
    same(from_supervision(detections, CLASSES), empty)
    same(from_supervision(supervision.Detections.empty()), empty)
    same(from_supervision(supervision.Detections.empty(), CLASSES), empty)


def test_annotations_have_no_scores(supervision):
    target = {k: v for k, v in some().items() if k != "scores"}
    detections = to_supervision(target, CLASSES)
    assert detections.confidence is None
    same(from_supervision(detections), target)


def test_labels_by_name(supervision):
    """Another detector numbers the same classes in another way."""
    detections = to_supervision(some(), CLASSES)
    expected = some() | {"labels": torch.tensor([2, 3])}
    same(from_supervision(detections, ["dog", "bird", "cat"]), expected)
    with pytest.raises(ValueError, match="expected class names among dog, cat; got 'bird'"):
        from_supervision(detections, ["dog", "cat"])
    nameless = supervision.Detections(xyxy=np.zeros((2, 4)), class_id=np.array([0, 1]))
    with pytest.raises(
        ValueError, match=r'data\["class_name"\] to name the class of 2 boxes, got 0'
    ):
        from_supervision(nameless, CLASSES)


def test_boxes_without_a_class_are_refused(supervision):
    with pytest.raises(ValueError, match="expected boxes with a class_id, got None"):
        from_supervision(supervision.Detections(xyxy=np.zeros((2, 4))))


@pytest.mark.parametrize("label", [0, 4])
def test_labels_without_a_name_are_refused(supervision, label):
    found = some() | {"labels": torch.tensor([1, label])}
    with pytest.raises(ValueError, match=f"expected labels from 1 to 3, .*got {label}"):
        to_supervision(found, CLASSES)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(some(), CLASSES)


def test_the_module_imports_no_supervision():
    code = "import sys, mdssd.integrations.supervision; print('supervision' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
