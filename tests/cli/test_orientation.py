"""`--orientation` of every command that reads images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mdssd import ssd300
from mdssd.cli import main
from mdssd.evaluation import evaluate
from mdssd.models import MEAN_RGB
from mdssd.weights.checkpoint import save_checkpoint

TINY = "--model ssd300 --width 0.0625 --batch-size 2 --lr 0.01 --threads 1 --workers 0".split()


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path):
    """A VOC folder whose annotations state no size, and whose photographs EXIF turns."""
    root = tmp_path / "photos"
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 6
    for name in "ab":
        pixels = np.full((60, 80, 3), 90, np.uint8)
        pixels[5:55, 40:75] = 250
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg", exif=exif)
        box = "<xmin>40</xmin><ymin>5</ymin><xmax>75</xmax><ymax>55</ymax>"
        (root / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>x</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return root


def test_the_switch_reaches_every_command_and_evaluation_remembers_it(
    capsys, tmp_path, photos, monkeypatch
):
    assert main(["data", "check", str(photos)]) == 0  # upright is 60 wide: boxes reach beyond it
    text = capsys.readouterr().out
    assert "reaches beyond the image of 60 x 80" in text and "taken as if they do" in text
    assert main(["data", "check", str(photos), "--orientation", "stored"]) == 0
    text = capsys.readouterr().out
    assert "reaches beyond" not in text and "EXIF" not in text and "80 x 60" in text

    out = tmp_path / "run"
    arguments = ["train", "--data", str(photos), *TINY, "--iterations", "1", "--out", str(out)]
    assert main([*arguments, "--orientation", "stored", "--eval-data", str(photos)]) == 0
    assert "EXIF" not in capsys.readouterr().out
    meta = json.loads((out / "last.json").read_text())
    assert meta["training"]["arguments"]["orientation"] == "stored"

    turned = []
    images = evaluate._images
    monkeypatch.setattr(
        evaluate,
        "_images",
        lambda dataset, *rest: turned.append(dataset.upright(0)) or images(dataset, *rest),
    )
    assert main(["eval", str(out), "--data", str(photos), "--workers", "0"]) == 0
    text = capsys.readouterr().out
    assert "orientation: stored, as in training (--orientation chooses another)" in text
    evaluated = ["eval", str(out), "--data", str(photos), "--workers", "0"]
    assert main([*evaluated, "--orientation", "auto"]) == 0
    text = capsys.readouterr().out
    assert "as in training" not in text and "taken as if they do" in text
    assert turned == [False, True]


def test_detect_takes_images_upright_unless_told_otherwise(capsys, tmp_path, photos):
    model = ssd300(2, width=0.0625)
    save_checkpoint(tmp_path / "x.json", model, classes=["x"], mean=MEAN_RGB, extra={})
    for choice, size in ([], (60, 80)), (["--orientation", "stored"], (80, 60)):
        found = str(tmp_path / f"found{len(choice)}")
        arguments = [
            "detect",
            str(tmp_path / "x.json"),
            str(photos / "JPEGImages"),
            "--out",
            found,
            "--no-draw",
        ]
        assert main([*arguments, "--workers", "0", "--threads", "1", *choice]) == 0
        (first, _) = json.loads((tmp_path / found / "detections.json").read_text())
        assert (first["width"], first["height"]) == size
    capsys.readouterr()


def test_what_was_guessed_is_said_at_the_end(capsys, tmp_path):
    save_checkpoint(
        tmp_path / "x.json", ssd300(2, width=0.0625), classes=["x"], mean=MEAN_RGB, extra={}
    )
    pages = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    (tmp_path / "photos").mkdir()
    for name in "ab":
        file = tmp_path / f"photos/{name}.tif"
        pages[0].save(file, save_all=True, append_images=pages[1:])
    Image.new("I;16", (40, 30)).save(tmp_path / "photos/c.png")
    found = str(tmp_path / "found")
    arguments = ["detect", str(tmp_path / "x.json"), str(tmp_path / "photos"), "--out", found]
    assert main([*arguments, "--workers", "0", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = tmp_path / "photos/a.tif"
    assert f"2 times: {first}: has more than one page or frame; the first is read" in lines
    assert any(
        line.startswith(f"{tmp_path / 'photos/c.png'}: has more than 8 bits") for line in lines
    )
