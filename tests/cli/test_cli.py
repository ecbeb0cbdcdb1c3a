"""The command: whole runs, one-line errors, and interruption by signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from mdssd import ops, ssd300
from mdssd.cli import main
from mdssd.data import SyntheticScenes, write_voc
from mdssd.models import MEAN_RGB
from mdssd.names import BACKENDS
from mdssd.training.recipe_files import read_recipe
from mdssd.training.settings import Recipe
from mdssd.weights.checkpoint import load_checkpoint, load_state, save_checkpoint

# A training run that takes a second.
TINY = "--model ssd300 --width 0.0625 --batch-norm --batch-size 2 --lr 0.01 --threads 1".split()
SCENES = [*TINY, "--scenes", "4", "--workers", "0"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """A VOC folder of four generated scenes, in splits trainval and test."""
    root = tmp_path_factory.mktemp("voc")
    write_voc(SyntheticScenes(4, seed=1), root, split="trainval")
    (root / "ImageSets/Main/test.txt").write_text(
        (root / "ImageSets/Main/trainval.txt").read_text()
    )
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of untrained weights with the classes of the generated scenes."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.json"
    torch.manual_seed(0)
    model = ssd300(6, width=0.0625, batch_norm=True)
    classes = SyntheticScenes(1).classes
    save_checkpoint(path, model, classes=classes, mean=MEAN_RGB, extra={})
    return path


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def expect_error(capsys, *arguments):
    """Run a command that must fail; return its one line of error without progress bars."""
    status, out, err = run(capsys, *arguments)
    assert status == 2, (out, err)
    lines = [line.rpartition("\r")[2] for line in err.splitlines() if "mdssd: error:" in line]
    assert len(lines) == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    assert err.rstrip("\n").endswith(lines[0])
    return lines[0].removeprefix("mdssd: error: ")


# --- runs ----------------------------------------------------------------------------------------


def test_train_eval_detect_on_a_voc_folder(capsys, tmp_path, voc):
    out = tmp_path / "run"
    status, text, _ = run(
        capsys, "train", *TINY, "--data", voc, "--epochs", 1, "--out", out, "--workers", 1,
        "--eval-split", "test",
    )  # fmt: skip
    assert status == 0
    assert "best VOC07 mAP" in text and str(out) in text
    meta = json.loads((out / "last.json").read_text())
    assert meta["training"]["arguments"]["data"] == str(voc)
    assert meta["training"]["recipe"]["schedule"] == "cosine"
    assert meta["training"]["recipe"]["warmup"] == 50

    status, text, _ = run(capsys, "eval", out, "--data", voc, "--out", tmp_path / "e")
    assert status == 0
    figures = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert figures["images"] == 4
    assert set(figures["voc07"]["AP"]) == set(meta["classes"])
    assert "VOC07 AP" in text

    photo = sorted((voc / "JPEGImages").iterdir())[0]
    status, text, _ = run(
        capsys, "detect", out, photo, "--out", tmp_path / "d", "--csv", "--score-threshold", 0
    )
    assert status == 0
    assert (tmp_path / "d" / "detections.json").is_file()
    assert (tmp_path / "d" / "detections.csv").is_file()


def test_generated_scenes(capsys, tmp_path, checkpoint):
    status, text, _ = run(capsys, "train", *SCENES, "--epochs", 1, "--out", tmp_path / "run")
    assert status == 0 and "4 images" in text
    status, text, _ = run(capsys, "eval", checkpoint, "--scenes", 2, "--backend", "reference")
    assert status == 0 and "2 images" in text


def test_init_takes_what_fits(capsys, tmp_path, voc, checkpoint):
    arguments = ["train", *SCENES, "--epochs", 1, "--lr", "1e-9", "--init", checkpoint]
    status, text, _ = run(capsys, *arguments, "--out", tmp_path / "a")
    assert status == 0
    count = len(load_checkpoint(checkpoint)[0].state_dict())
    assert f"{count} of {count} tensors start from {checkpoint}; class scores, by name: cr" in text
    start = dict(load_checkpoint(checkpoint)[0].named_parameters())
    for name, tensor in load_checkpoint(tmp_path / "a")[0].named_parameters():
        torch.testing.assert_close(tensor, start[name])
    arguments[arguments.index("ssd300")] = "mdssd300"  # shares the trunk and the extra layers
    status, text, _ = run(capsys, *arguments, "--out", tmp_path / "b")
    assert status == 0 and "the others are new: " in text


def test_resume_remembers_the_options(capsys, tmp_path, voc):
    out = tmp_path / "run"
    run(capsys, "train", *TINY, "--data", voc, "--epochs", 1, "--out", out, "--seed", 5,
        "--expand", 2, "--no-mirror")  # fmt: skip
    before = json.loads((out / "last.json").read_text())
    status, text, _ = run(capsys, "train", "--resume", "--out", out, "--epochs", 2, "--threads", 1)
    assert status == 0 and "2 epochs" in text
    after = json.loads((out / "last.json").read_text())
    assert after["training"]["recipe"] == {**before["training"]["recipe"], "epochs": 2}
    assert after["training"]["arguments"]["data"] == str(voc)
    assert after["model"] == before["model"]
    line = expect_error(capsys, "train", "--resume", "--out", out, "--lr", 0.5, "--epochs", 3)
    assert "lr (was 0.01, is 0.5)" in line
    line = expect_error(capsys, "train", "--resume", "--out", out, "--width", 0.5, "--epochs", 3)
    assert "has another model" in line


def test_photographs_to_evaluate_on_have_a_folder_of_their_own(tmp_path, monkeypatch):
    """Each COCO file lies in another folder than its images."""
    for name in ("train", "test"):
        folder = write_voc(SyntheticScenes(1), tmp_path / name)
        (image,) = (folder / "JPEGImages").iterdir()
        content = {
            "images": [{"id": 1, "file_name": image.name}],
            "categories": [{"id": 7, "name": "cat"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9]}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    opened = []

    def train(model, dataset, out_dir, *, eval_dataset, **_):
        opened.extend([dataset.image_dir, eval_dataset.image_dir])
        raise KeyboardInterrupt

    monkeypatch.setattr("mdssd.cli.commands.train.train", train)
    photos = [tmp_path / name / "JPEGImages" for name in ("train", "test")]
    arguments = ["train", *TINY, "--data", tmp_path / "train.json", "--image-dir", photos[0]]
    arguments += ["--eval-data", tmp_path / "test.json", "--eval-image-dir", photos[1]]
    assert main([str(argument) for argument in arguments]) == 130
    assert opened == photos


def test_info_and_version(capsys):
    status, text, _ = run(capsys, "info")
    assert status == 0 and torch.__version__ in text
    status, text, _ = run(capsys, "--version")
    assert status == 0 and text.startswith("mdssd ")


def test_help_states_the_real_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    status, text, _ = run(capsys, "train", "--help")
    assert status == 0
    fields = Recipe.__dataclass_fields__
    defaults = {name: field.default for name, field in fields.items()} | read_recipe("photos")
    for name in ("batch_size", "lr", "momentum", "weight_decay", "seed", "log_every", "save_every",
                 "expand", "crop_min_scale", "keep", "bias_lr_factor", "minutes", "width", "warmup",
                 "ema", "clip_gradient"):  # fmt: skip
        described = text.rsplit(f"\n  --{name.replace('_', '-')} ", 1)[1]
        stated = described.split("(default ")[1].split(")")[0].split(",")[0]
        assert float(stated) == defaults[name], name


# --- errors --------------------------------------------------------------------------------------


def broken_voc(root, fault):
    """Write a VOC folder of two scenes with one fault; return a name that the error must have."""
    write_voc(SyntheticScenes(2, seed=1), root, split="trainval")
    photo = sorted((root / "JPEGImages").iterdir())[1]
    annotation = root / "Annotations" / f"{photo.stem}.xml"
    if fault == "missing image":
        photo.unlink()
    elif fault == "truncated image":
        photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    elif fault == "broken annotation":
        annotation.write_text(annotation.read_text()[:100])
        return annotation.name
    elif fault == "missing annotation":
        annotation.unlink()
        return annotation.name
    elif fault == "empty split":
        (root / "ImageSets/Main/trainval.txt").write_text("")
        return "trainval.txt"
    return photo.stem


@pytest.mark.parametrize(
    "fault",
    ["missing image", "truncated image", "broken annotation", "missing annotation", "empty split"],
)
def test_broken_data_is_named_and_nothing_is_written(capsys, tmp_path, fault):
    named = broken_voc(tmp_path / "data", fault)
    out = tmp_path / "run"
    line = expect_error(
        capsys, "train", *TINY, "--epochs", 1, "--data", tmp_path / "data", "--out", out
    )
    assert named in line
    assert not out.exists()


def test_degenerate_boxes_and_empty_annotations_are_reported_not_fatal(capsys, tmp_path):
    root = tmp_path / "data"
    write_voc(SyntheticScenes(2, seed=1), root, split="trainval")
    first, second = sorted((root / "Annotations").iterdir())
    text = first.read_text()
    head, _, rest = text.partition("<object>")
    first.write_text(head + "</annotation>")
    text = second.read_text()
    x2 = text.split("<xmax>")[1].split("</xmax>")[0]
    second.write_text(text.replace(f"<xmax>{x2}</xmax>", "<xmax>-5</xmax>", 1))
    status, out, _ = run(
        capsys, "train", *TINY, "--epochs", 1, "--data", root, "--out", tmp_path / "run"
    )
    assert status == 0
    assert "1 box dropped" in out and second.name in out
    assert "1 image without a box" in out


def test_one_line_for_every_wrong_input(capsys, tmp_path, voc, checkpoint):
    out = tmp_path / "run"
    train = ["train", *TINY, "--epochs", 1, "--out", out]
    cases = [
        ([*train, "--data", tmp_path / "nowhere"], "nowhere: no such file"),
        ([*train, "--data", voc, "--split", "moon"], "moon.txt: no such split"),
        ([*train, "--data", voc, "--split", "../../x"], "x"),
        ([*train, "--data", voc, "--classes", "moon"], "no box has one of the classes moon"),
        ([*train, "--data", voc, "--scenes", 3], "--scenes"),
        ([*train, "--scenes", 3, "--classes", "disc"], "--classes"),
        ([*train, "--data", voc, "--eval-split", "moon"], "moon.txt"),
        (
            [*train, "--data", voc, "--width", 0],
            "--width: expected a number above 0 and at most 4",
        ),
        ([*train], "expected --data DIR|FILE (or --scenes N for generated scenes)"),
        (
            [*train, "--data", voc, "--prior-scales", "x"],
            "--prior-scales: expected one of voc",
        ),
        ([*train, "--data", voc, "--lr", 0], "--lr: expected a number above 0, got '0'"),
        ([*train, "--data", voc, "--lr", "nan"], "--lr: expected a number above 0, got 'nan'"),
        ([*train, "--data", voc, "--seed", -1], "--seed: expected a whole number from 0, got '-1'"),
        ([*train, "--data", voc, "--device", "cuda:99"], "cuda:99: no such device"),
        (
            [*train, "--data", voc, "--device", "toaster"],
            "--device: expected cpu, cuda, cuda:1 ",
        ),
        ([*train, "--data", voc, "--init", tmp_path / "no.pth"], "no.pth: no such file"),
        ([*train, "--data", voc, "--resume"], "there is no run to resume"),
        ([*train, "--data", voc, "--out", checkpoint.parent], "holds a run already (best.json)"),
        ([*train, "--minutes", 1], "not allowed with argument --epochs"),
        ([*train, "--batch-size", "many"], "expected a whole number from 1, got 'many'"),
        (
            [*train, "--speed", 3],
            "unknown option --speed; did you mean --seed? (see `mdssd train --help`)",
        ),
        ([*train, "--batchsize", 3], "unknown option --batchsize; did you mean --batch-size? (see"),
        (
            [*train, "--data", voc, "--input-size", 250],
            "--input-size: expected a multiple of 32 from 256 to 1024, or 300, got 250",
        ),
        (
            [*train, "--model", "dssd321", "--data", voc, "--input-size", 300],
            "--input-size: expected a multiple of 32 from 256 to 1024, or 321 or 513, got 300",
        ),
        (
            [*train, "--data", voc, "--input-size", "640x300"],
            "--input-size: expected width and height, each a multiple of 32 from 256 to 1024, got",
        ),
        (
            [*train, "--data", voc, "--input-size", "-32"],
            "or width x height as in 640x384; got '-3",
        ),
        (
            [*train, "--model", "mdssd640"],
            "got 'mdssd640'; --input-size N gives it another input (see `mdssd train --help`)",
        ),
        (["data", "check", voc, "--input-size", 1056], "or 300, got 1056"),
        (["data", "show", voc, "--input-size", 1056, "--out", out], "or 300, got 1056"),
        ([*train, "--threads", 100000], "--threads: expected a whole number from 1 to "),
        ([*train, "--workers", 100000], "--workers: expected a whole number from 0 to "),
        (
            [*train, "--backend", "simt"],
            "expected one of reference, cpp, cuda, triton; got",
        ),
        ([*train, "--iterations", 1], "not allowed with argument --epochs"),
        ([*train, "--drops", "5,soon"], "expected rising iterations or fractions as in 60000,"),
        ([*train, "--drops", "5,3"], "--drops: expected rising iterations or fractions"),
        ([*train, "--ema", "many"], "--ema: expected a number of at least 0 and below 1, got"),
        ([*train, "--save-iterations", 0], "expected a whole number from 1, got '0'"),
        ([*train, "--scenes", 1, "--recipe", "ssd400"], "ssd400: no such recipe or file; expected"),
        (["train", "--classes", "a,,b"], "expected distinct names"),
        (["dance"], "unknown command dance; expected one of train, eval, "),
        (["detct"], "unknown command detct; did you mean detect? (see `mdssd --help`)"),
        (["detect", voc], "required: IMAGE; for example: mdssd detect runs/mine photos/"),
        (["data", "check"], "expected DIR|FILE (or --scenes N for generated scenes)"),
        (["export", checkpoint, "--out", tmp_path], "--out: expected a file to write, but "),
        ([], "required"),
        (["eval", tmp_path / "no.json", "--data", voc], "no.json: no such file"),
        (["eval", tmp_path, "--data", voc], "holds no checkpoint"),
        (["eval", checkpoint, "--data", voc, "--split", "moon"], "moon.txt"),
        (["eval", checkpoint, "--batch-size", 0], "expected a whole number from 1"),
        (["detect", tmp_path / "no.json", voc], "no.json: no such file"),
        (["detect", checkpoint, tmp_path / "no.jpg", "--out", out], "no.jpg"),
        (["detect", checkpoint, voc, "--score-threshold", 2], "expected a number from 0 to 1"),
        (["detect", checkpoint, voc, "--workers", -1], "expected a whole number from 0 to "),
        (["detect", checkpoint, voc, "--runtime", "graph"], "'graph' needs a cuda device, got cpu"),
        (["eval", checkpoint, "--scenes", 1, "--dtype", "float16"], "float16 needs a GPU"),
    ]
    there = {name for names in ops.backends().values() for name in names}
    cases += [
        ([*train, "--data", voc, "--backend", name], "not available here")
        for name in BACKENDS
        if name not in there
    ]
    before = sorted(path.name for path in checkpoint.parent.iterdir())
    for arguments, expected in cases:
        assert expected in expect_error(capsys, *arguments), arguments
        assert not out.exists(), arguments
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == before


def test_eval_rejects_an_output_that_is_no_folder_before_it_detects(
    capsys, tmp_path, monkeypatch, checkpoint
):
    monkeypatch.setattr("mdssd.cli.commands.evaluate.find_all", None)
    (tmp_path / "file").write_text("mine")
    line = expect_error(capsys, "eval", checkpoint, "--scenes", 1, "--out", tmp_path / "file")
    assert f"--out: expected a folder, but {tmp_path / 'file'} is text" in line


def test_eval_refuses_data_of_other_classes(capsys, tmp_path, voc):
    path = tmp_path / "best.json"
    model = ssd300(2, width=0.0625, batch_norm=True)
    save_checkpoint(path, model, classes=["cat"], mean=MEAN_RGB, extra={})
    line = expect_error(capsys, "eval", path, "--data", voc)
    assert "cat" in line and any(name in line for name in SyntheticScenes(1).classes)


def test_pickle_is_refused_as_checkpoint(capsys, tmp_path, checkpoint):
    path = tmp_path / "model.safetensors"
    torch.save({"w": torch.zeros(2)}, path)
    assert "is a pickle" in expect_error(capsys, "eval", path, "--scenes", 1)
    assert "is a pickle" in expect_error(capsys, "detect", path, tmp_path)
    arguments = ["train", *SCENES, "--out", tmp_path / "run", "--init", path]
    assert f"load_pretrained: {path}: " in expect_error(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_traceback_on_request(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        main(["eval", str(tmp_path / "no.json"), "--scenes", "1", "--traceback"])


def test_detect_reports_unreadable_images(capsys, tmp_path, checkpoint):
    cv2.imwrite(str(tmp_path / "good.png"), np.full((40, 60, 3), 90, np.uint8))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    status, out, err = run(
        capsys, "detect", checkpoint, tmp_path / "*.png", "--out", tmp_path / "d", "--threads", 1
    )
    assert status == 1
    assert (out + err).count("bad.png") == 1
    assert (tmp_path / "d" / "detections.json").is_file()


# --- signals -------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*arguments):
    """Start `mdssd` in a process group of its own, and kill the group at the end."""
    command = [sys.executable, "-m", "mdssd", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # If a shell started the tests in the background, they and their children ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_checkpoint(process, out):
    for _ in range(6000):
        if process.poll() is not None:
            pytest.fail(f"training ended early: {process.communicate()}")
        if (out / "last.json").exists():
            return
        time.sleep(0.02)
    pytest.fail("no checkpoint appeared")


def test_ctrl_c_leaves_the_last_checkpoint_and_says_how_to_resume(tmp_path):
    out = tmp_path / "run"
    options = [*TINY, "--scenes", 4, "--epochs", 1000, "--workers", 1]
    with running("train", *options, "--out", out) as process:
        wait_for_checkpoint(process, out)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert f"resume with: mdssd train --resume --out {out}" in err
    assert "Traceback" not in err
    load_checkpoint(out)
    load_state(out)
    assert not list(out.glob(".*"))


def ending(tmp_path, program):
    """Run a program as a module, like `python -m mdssd`; return its exit status and its errors."""
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "program"],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    return done.returncode, done.stderr


def test_ctrl_c_in_code_from_a_string_has_its_exit_status_too(tmp_path):
    """Without a measure against it, CPython would end the process by the signal."""
    program = """
import signal, sys
from mdssd.cli import main
from mdssd.cli.commands import train

def run(arguments):
    try:
        exec("signal.raise_signal(signal.SIGINT)")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(7) from None

train.run = run
sys.exit(main(["train", "--scenes", "1", "--out", "run"]))
"""
    assert ending(tmp_path, program) == (130, "mdssd: interrupted; 7\n")


def test_ctrl_c_while_a_command_is_imported(tmp_path):
    program = """
import signal, sys
from mdssd.cli import main

class Interrupting:
    def find_spec(self, name, *rest):
        if name == "torch":
            exec("signal.raise_signal(signal.SIGINT)")

sys.meta_path.insert(0, Interrupting())
sys.exit(main(["train", "--scenes", "1", "--out", "run"]))
"""
    assert ending(tmp_path, program) == (130, "mdssd: interrupted\n")


@contextlib.contextmanager
def detecting(tmp_path, checkpoint, *more):
    """Run `mdssd detect` on 2,000 photographs, the third truncated, until some are drawn."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    encoded = cv2.imencode(".jpg", SyntheticScenes(1, seed=1)[0].image)[1].tobytes()
    for number in range(2000):
        (photos / f"{number:04}.jpg").write_bytes(encoded)
    (photos / "0002.jpg").write_bytes(encoded[:999])
    options = ["--out", out, "--threads", 1, "--workers", 2, *more]
    with running("detect", checkpoint, photos, *options) as process:
        for _ in range(6000):
            if (out / "0020.jpg").exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        yield process, out


def test_ctrl_c_leaves_the_detections_so_far(tmp_path, checkpoint):
    with detecting(tmp_path, checkpoint, "--csv") as (process, out):
        os.killpg(process.pid, signal.SIGINT)
        text, err = process.communicate(timeout=120)
        assert process.returncode == 130
        with pytest.raises(ProcessLookupError):  # all workers have ended
            os.killpg(process.pid, 0)
    images = json.loads((out / "detections.json").read_text())
    assert 19 <= len(images) < 1999  # an image is drawn before its entry is written
    assert f"mdssd: interrupted; {len(images)} of 2000 images done; boxes in {out}" in err
    assert "Traceback" not in err and text.count("0002.jpg: the image is truncated") == 1
    assert [os.path.basename(image["file"]) for image in images[:3]] == [
        "0000.jpg",
        "0001.jpg",
        "0003.jpg",
    ]
    written = {path.name for path in out.iterdir()}
    assert written >= {os.path.basename(image["file"]) for image in images}
    assert not [name for name in written if name.startswith(".")]


def test_workers_end_when_the_main_process_is_killed(tmp_path, checkpoint):
    with detecting(tmp_path, checkpoint) as (process, _):
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)  # returns once every worker has ended


def test_a_file_of_another_kind_is_named_for_what_it_is(capsys, tmp_path, checkpoint):
    photo, page = tmp_path / "photo.jpg", tmp_path / "page.xml"
    cv2.imwrite(str(photo), np.zeros((8, 8, 3), np.uint8))
    page.write_text("<annotation></annotation>")
    cases = [
        (["train", "--data", photo], f"{photo}: is a JPEG image, expected a COCO JSON file"),
        (["data", "check", page], f"{page}: not a file of CVAT: found <annotation>, expected <"),
        (["data", "check", "/dev/zero"], "/dev/zero: is neither a regular file nor a folder"),
        (["eval", photo, "--scenes", 1], f"{photo}: is a JPEG image, not a safetensors file (a "
         "checkpoint is a .json with a .safetensors beside it, or the folder of a training run)"),
        (["detect", page, photo, "--out", tmp_path / "d"], f"{page}: is XML, not a safetensors "),
        (["train", *SCENES, "--init", photo, "--out", tmp_path / "run"], "it is a JPEG image, exp"),
        (["convert", photo, "--out", tmp_path / "a.json"], "it is a JPEG image, expected a safe"),
    ]  # fmt: skip
    for arguments, expected in cases:
        assert expected in expect_error(capsys, *arguments), arguments
