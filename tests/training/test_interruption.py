"""Whatever ends a run, its last checkpoint is whole and a resumed run gives the same bits."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mdssd import ssd300
from mdssd.cli import main
from mdssd.data import SyntheticScenes
from mdssd.system.stop import Terminated
from mdssd.training import run as run_module
from mdssd.training.loop import train
from mdssd.training.run import TrainingError
from mdssd.weights.checkpoint import load_checkpoint, load_state
from mdssd.weights.checkpoint_json import read_meta

# With nine images in batches of two, an epoch has four iterations.
RECIPE = dict(
    iterations=6,
    schedule="steps",
    drops=(2, 5),
    warmup=2,
    batch_size=2,
    lr=0.01,
    log_every=2,
    save_iterations=3,
    save_every=100,
    progress=False,
    check_images=False,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Scenes(SyntheticScenes):
    """Nine scenes. Before each image, `hook` is called with the number of images read so far."""

    def __init__(self, hook=None):
        super().__init__(9, seed=1)
        self.hook = hook
        self.read = 0

    def __getitem__(self, index):
        if self.hook is not None:
            self.hook(self.read)
            self.read += 1
        return super().__getitem__(index)


def small(seed=0):
    torch.manual_seed(seed)
    return ssd300(6, width=0.0625, batch_norm=True)


def run(out, hook=None, *, seed=0, **options):
    return train(small(seed), Scenes(hook), out, **{"workers": 0, **RECIPE, **options})


def rows_of(out):
    """Return the rows of loss.csv without the last two columns, which depend on the speed."""
    with open(out / "loss.csv", newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def expect_same(ours, theirs):
    """Check that two checkpoints have the same weights and the same training state, bit for bit."""
    for load in (lambda path: load_checkpoint(path)[0].state_dict(), load_state):
        a, b = load(ours), load(theirs)
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name
    assert read_meta(ours)["training"]["step"] == read_meta(theirs)["training"]["step"]


def expect_tidy(out, *more):
    """Check that every checkpoint loads, and that the folder has no file that belongs to none.

    more: names of further files that are allowed.
    """
    named = {"loss.csv", "loss.png", *more}
    for path in out.glob("*.json"):
        meta = read_meta(path)
        named |= {path.name, meta["weights"], meta.get("state", path.name)}
        load_checkpoint(path)
    assert {path.name for path in out.iterdir()} <= named


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return the folder of an uninterrupted run of six iterations."""
    out = tmp_path_factory.mktemp("straight")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(out)
    torch.set_num_threads(threads)
    return out


def ctrl_c(read):
    if read == 9:  # the fifth iteration, the first of the second epoch
        raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_in_the_middle_of_an_epoch_with_the_same_bits(tmp_path, straight, workers):
    """The resumed run has other loader processes and other states of all global generators."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ctrl_c)
    facts = read_meta(tmp_path / "last.json")["training"]
    assert (facts["epoch"], facts["batch"], facts["step"]) == (0, 3, 3)
    np.random.seed(7)
    state = run(tmp_path, seed=7, resume=True, workers=workers)
    assert (state.epoch, state.batch, state.step) == (1, 2, 6)
    expect_same(tmp_path / "last.json", straight / "last.json")
    assert rows_of(tmp_path) == rows_of(straight)
    expect_tidy(tmp_path)


def test_average_of_the_weights_resumes_in_the_middle_of_an_epoch(tmp_path):
    run(tmp_path / "whole", ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", ctrl_c, ema=0.9)
    run(tmp_path / "parts", seed=7, resume=True, ema=0.9)
    expect_same(tmp_path / "parts/last.json", tmp_path / "whole/last.json")


def test_run_that_ended_within_an_epoch_can_be_made_longer(tmp_path, straight):
    run(tmp_path, iterations=5)
    run(tmp_path, seed=7, resume=True)
    expect_same(tmp_path / "last.json", straight / "last.json")


def test_keeps_the_last_checkpoints_and_goes_back_to_one(tmp_path, straight):
    run(tmp_path, save_iterations=1, keep=2)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "last.json", "step-00000005.json", "step-00000006.json",
    ]  # fmt: skip
    expect_tidy(tmp_path)
    for step in (5, 6):
        assert read_meta(tmp_path / f"step-{step:08}.json")["training"]["step"] == step
        load_state(tmp_path / f"step-{step:08}.json")
    shutil.copy(tmp_path / "step-00000005.json", tmp_path / "last.json")
    (tmp_path / ".step-00000003.json.4242.mdssd.tmp").write_text("half of it")  # left by a kill
    run(tmp_path, seed=7, resume=True, save_iterations=1, keep=2)
    expect_same(tmp_path / "last.json", straight / "last.json")
    run(tmp_path, resume=True, iterations=7)
    assert [path.name for path in tmp_path.glob("*.json")] == ["last.json"]
    expect_tidy(tmp_path)


# --- SIGTERM -------------------------------------------------------------------------------------


def terminate(read):
    if read == 9:
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_after_the_iteration_that_it_comes_in(tmp_path, straight):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as caught:
        run(tmp_path, terminate, save_iterations=None)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_meta(tmp_path / "last.json")["training"]["step"] == 5
    run(tmp_path, seed=7, resume=True, save_iterations=None)
    expect_same(tmp_path / "last.json", straight / "last.json")
    expect_tidy(tmp_path)


def test_ctrl_c_saves_after_the_iteration_that_it_comes_in(tmp_path, straight):
    """Also in the first epoch, before any checkpoint. A second Ctrl-C stops at once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, lambda read: read == 1 and os.kill(os.getpid(), signal.SIGINT))
        assert read_meta(tmp_path / "last.json")["training"]["step"] == 1
        with pytest.raises(KeyboardInterrupt):
            # Python handles each signal before the next line of the hook's caller.
            run(tmp_path, resume=True, hook=twice)
        assert read_meta(tmp_path / "last.json")["training"]["step"] == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    run(tmp_path, seed=7, resume=True)
    expect_same(tmp_path / "last.json", straight / "last.json")
    assert rows_of(tmp_path)[-1] == rows_of(straight)[-1]
    expect_tidy(tmp_path)


def twice(read):
    if read < 2:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_long_epoch_is_saved_by_the_clock(tmp_path, monkeypatch):
    """A kill then loses minutes, not the epoch."""
    monkeypatch.setattr(run_module, "_SECONDS_BETWEEN_SAVES", -1.0)
    seen = []

    def hook(read):
        if (tmp_path / "last.json").exists() and read % 2 == 0:
            seen.append(read_meta(tmp_path / "last.json")["training"]["step"])

    run(tmp_path, hook, save_iterations=None)
    assert seen[:3] == [1, 2, 3]


def test_sigterm_ends_an_evaluation_at_once_and_a_resumed_run_repeats_it(tmp_path, monkeypatch):
    def evaluation(*arguments, **_):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # Python may handle the signal a little later
            time.sleep(0.01)
        pytest.fail("the evaluation was not interrupted")

    options = dict(eval_dataset=Scenes(), eval_every=1)
    real = run_module.evaluate
    monkeypatch.setattr(run_module, "evaluate", evaluation)
    with pytest.raises(Terminated):
        run(tmp_path, **options)
    assert read_meta(tmp_path / "last.json")["training"]["step"] == 4
    monkeypatch.setattr(run_module, "evaluate", real)
    state = run(tmp_path, resume=True, **options)
    assert [epoch for epoch, _ in state.evaluations] == [1, 1]  # after epoch 1, and at the end
    assert (tmp_path / "best.json").exists()
    expect_tidy(tmp_path)


def mdssd(*arguments):
    """Start the `mdssd` command in its own process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "mdssd", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# With fifteen images in batches of two, an epoch has seven iterations.
COMMAND = (
    "train --model ssd300 --width 0.0625 --batch-norm --batch-size 2 --lr 0.01 --threads 1 "
    "--scenes 15 --log-every 1"
).split()


def reach(process, out, step):
    """Wait for a checkpoint of iteration `step` or later, and return its iteration."""
    for _ in range(30_000):
        if process.poll() is not None:
            pytest.fail(f"training ended early: {process.communicate()}")
        if (out / "last.json").exists():
            reached = json.loads((out / "last.json").read_text())["training"]["step"]
            if reached >= step:
                return reached
        time.sleep(0.01)
    pytest.fail("no checkpoint appeared")


def end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def test_sigterm_to_the_whole_group_ends_the_command_with_143(tmp_path):
    """Batch systems do this. The loader workers must survive until the iteration is complete."""
    out = tmp_path / "run"
    process = mdssd(
        *COMMAND, "--iterations", 10_000, "--save-iterations", 1, "--workers", 1, "--out", out
    )
    try:
        reach(process, out, 1)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == 143
    assert f"mdssd: terminated after saving {out}/last.json; resume with: mdssd train --re" in err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):  # no worker of the group is left
        os.killpg(process.pid, 0)
    assert len(rows_of(out)) - 1 == read_meta(out / "last.json")["training"]["step"]
    load_state(out)
    expect_tidy(out)


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Return a function that keeps this process from writing files above 20 kB (True) or not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(full):
        soft = 20_000 if full else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, limits[1]))

    yield fill
    fill(False)


def test_full_disk_costs_a_warning_and_the_next_checkpoint_is_written(
    tmp_path, straight, full_disk, capsys
):
    def hook(read):
        if read in (2, 8):  # the second and the fifth iteration
            full_disk(read == 2)
        if read == 8:
            expect_tidy(tmp_path)

    run(tmp_path, hook, save_iterations=1)
    assert "last.json: the checkpoint of iteration 2 cannot be written" in capsys.readouterr().err
    expect_same(tmp_path / "last.json", straight / "last.json")
    expect_tidy(tmp_path)


def test_full_disk_at_the_end_is_an_error_and_the_run_can_be_resumed(tmp_path, straight, full_disk):
    with pytest.raises(TrainingError, match="iteration 6 cannot be written .* predecessor is who"):
        run(tmp_path, lambda read: full_disk(read >= 7))
    full_disk(False)
    assert read_meta(tmp_path / "last.json")["training"]["step"] == 3
    expect_tidy(tmp_path)
    run(tmp_path, seed=7, resume=True)
    expect_same(tmp_path / "last.json", straight / "last.json")


# --- kill ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.nightly("takes minutes"))])
def test_killed_at_random_moments_the_newest_checkpoint_always_loads(tmp_path, kills, capsys):
    """Every checkpoint that exists after a kill loads, and none is lost."""
    out = tmp_path / "run"
    rng = np.random.default_rng(0)
    options = ["--iterations", 100_000, "--save-iterations", 1, "--keep", 3, "--workers", 0]
    reached = 0
    for attempt in range(kills):
        process = mdssd(*COMMAND, *options, "--out", out, *(["--resume"] if attempt else []))
        try:
            # Some runs are killed while they start.
            if attempt and rng.random() < 0.2:
                time.sleep(rng.uniform(0, 4))
            else:
                reach(process, out, reached + 1)
                time.sleep(rng.uniform(0, 0.6))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            end(process)
        _, meta = load_checkpoint(out / "last.json")
        load_state(out / "last.json")
        assert meta["training"]["step"] >= reached, attempt
        reached = meta["training"]["step"]
        for path in out.glob("step-*.json"):
            load_checkpoint(path)
            load_state(path)
    assert main([*COMMAND, "--resume", "--out", str(out), "--iterations", str(reached + 1)]) == 0
    assert f"{reached + 1} iterations" in capsys.readouterr().out
    expect_tidy(out)


@pytest.mark.nightly("takes minutes; test_resumes_in_the_middle_of_an_epoch is a small form")
def test_hundred_iterations_kill_and_hundred_more_are_two_hundred(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--iterations", 200, "--save-iterations", 100, "--save-every", 1000]
    process = mdssd(*COMMAND, *options, "--workers", 1, "--out", whole)
    assert process.wait() == 0
    process = mdssd(*COMMAND, *options, "--workers", 1, "--out", parts)
    try:
        assert reach(process, parts, 100) == 100
        time.sleep(0.5)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    facts = read_meta(parts / "last.json")["training"]
    assert (facts["step"], facts["batch"]) == (100, 2)  # in the middle of the fifteenth epoch
    process = mdssd("train", "--resume", "--out", parts, "--threads", 1, "--workers", 0)
    assert process.wait() == 0
    expect_same(whole / "last.json", parts / "last.json")
    assert rows_of(whole) == rows_of(parts)
