"""`mdssd quantize`: which images it calibrates with, and on which it measures."""

from types import SimpleNamespace

import pytest
import torch

from mdssd import ssd300
from mdssd.cli import main
from mdssd.cli.commands import quantize as command
from mdssd.data import SyntheticScenes, write_voc
from mdssd.weights.checkpoint import save_checkpoint

CLASSES = SyntheticScenes(1).classes


@pytest.fixture
def voc(tmp_path):
    """A VOC folder with splits train, val and test of one image each."""
    root = tmp_path / "voc"
    write_voc(SyntheticScenes(3), root, split="trainval")
    listed = root / "ImageSets/Main/trainval.txt"
    names = listed.read_text().split()
    listed.unlink()
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
    return root, names


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "small.json"
    torch.manual_seed(0)
    model = ssd300(len(CLASSES) + 1, width=0.0625)
    save_checkpoint(path, model, classes=CLASSES, mean=(123, 117, 104), extra={})
    return path


@pytest.fixture
def calls(monkeypatch):
    """The arguments of `quantize`, which is not run."""
    found = []

    def quantize(*arguments, **keywords):
        found.append((arguments, keywords))
        return SimpleNamespace(table=lambda: "the table", path="the path")

    monkeypatch.setattr(command, "quantize", quantize)
    monkeypatch.setattr(command, "check_packages", lambda: None)
    return found


@pytest.mark.parametrize(
    "words, train, evaluation",
    [
        ([], 0, 2),
        (["--split", "val"], 1, 2),
        (["--eval-split", "val"], 0, 1),
        (["--eval-data", "VOC", "--eval-split", "train"], 0, 0),
    ],
)
def test_the_splits(voc, checkpoint, calls, tmp_path, capsys, words, train, evaluation):
    root, names = voc
    words = [str(root) if word == "VOC" else word for word in words]
    out = str(tmp_path / "a")
    words = ["--data", str(root), "--out", out, *words]
    options = ["--images", "7", "--max-drop", "0.01", "--tile", "200", "--batch-size", "3"]
    assert main(["quantize", str(checkpoint), *options, *words]) == 0
    ((arguments, keywords),) = calls
    assert arguments == (str(checkpoint), out)
    assert keywords["calibration"].image_ids == [names[train]]
    assert keywords["validation"].image_ids == [names[evaluation]]
    assert (keywords["images"], keywords["max_drop"], keywords["batch_size"]) == (7, 0.01, 3)
    assert (keywords["tile"], keywords["overlap"], keywords["with_whole"]) == (200, 0.2, False)
    assert capsys.readouterr().out.endswith("the table\nwritten: the path\n")


def test_images_without_annotations_can_calibrate_but_not_measure(
    voc, checkpoint, calls, tmp_path, capsys
):
    root, names = voc
    words = ["quantize", str(checkpoint), "--data", str(root), "--out", str(tmp_path / "a")]
    (root / f"Annotations/{names[0]}.xml").unlink()
    assert main(words) == 0
    assert calls[0][1]["calibration"].image_ids == [names[0]]
    assert main([*words, "--eval-split", "train"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mdssd: error: ") and error.count("\n") == 1
    assert names[0] in error
    assert len(calls) == 1
