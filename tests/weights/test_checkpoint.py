"""Checkpoints: round trip, atomicity, and clear errors for files that are not checkpoints."""

import json
import pickle

import pytest
import safetensors.torch
import torch

from mdssd import ssd300, ssd512
from mdssd.system import files
from mdssd.weights import checkpoint
from mdssd.weights.checkpoint import load_checkpoint, load_state, save_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, read_meta

MEAN = (123.0, 117.0, 104.0)
NAMES = ["cat", "dog"]


def small(seed=0, num_classes=3, build=ssd300, width=0.0625, batch_norm=True):
    torch.manual_seed(seed)
    model = build(num_classes, width=width, batch_norm=batch_norm)
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer is not model.priors:
            buffer.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def other():
    return small(1)


@pytest.fixture
def saved(tmp_path, model):
    save_checkpoint(tmp_path / "best.json", model, classes=NAMES, mean=MEAN, extra={"step": 7})
    return tmp_path / "best.json"


def weights_of(path):
    return path.with_name(json.loads(path.read_text())["weights"])


def edit(path, **changes):
    meta = json.loads(path.read_text())
    meta.update(changes)
    path.write_text(json.dumps(meta))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("form", ["json", "weights", "folder", "text"])
def test_round_trip(saved, model, form):
    path = {"json": saved, "weights": weights_of(saved), "folder": saved.parent, "text": str(saved)}
    loaded, meta = load_checkpoint(path[form])
    assert same(loaded, model)
    assert not loaded.training
    assert loaded.config() == model.config()
    assert meta["classes"] == NAMES
    assert meta["mean"] == list(MEAN)
    assert meta["input_size"] == 300
    assert meta["priors"]["count"] == 8732
    assert meta["priors"]["prior_scales"] == "voc"
    assert meta["training"] == {"step": 7}


def test_channels_last_weights_round_trip(tmp_path, model):
    turned = small().to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "a.json", turned, classes=NAMES, mean=MEAN, extra={})
    assert same(load_checkpoint(tmp_path / "a.json")[0], model)


def test_half_stores_parameters_in_half_the_bytes_and_buffers_exactly(tmp_path, model):
    large = small()
    large.state_dict()["trunk.conv1.conv1_1.norm.running_var"].fill_(1e6)  # exceeds float16
    save_checkpoint(tmp_path / "h.json", large, classes=NAMES, mean=MEAN, extra={}, half=True)
    save_checkpoint(tmp_path / "f.json", large, classes=NAMES, mean=MEAN, extra={})
    loaded, _ = load_checkpoint(tmp_path / "h.json")
    parameters = dict(large.named_parameters())
    for name, tensor in loaded.state_dict().items():
        want = large.state_dict()[name]
        if name in parameters:
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, want.half().float()), name
        else:
            assert torch.equal(tensor, want), name
    half, full = (weights_of(tmp_path / name).stat().st_size for name in ("h.json", "f.json"))
    assert half < 0.6 * full


def test_folder_prefers_best_over_last(tmp_path, model, other):
    save_checkpoint(tmp_path / "last.json", other, classes=NAMES, mean=MEAN, extra={})
    assert same(load_checkpoint(tmp_path)[0], other)
    save_checkpoint(tmp_path / "best.json", model, classes=NAMES, mean=MEAN, extra={})
    assert same(load_checkpoint(tmp_path)[0], model)


def test_state_is_kept_beside_the_weights(tmp_path, model):
    state = {"momentum.x": torch.arange(6.0).reshape(2, 3).t()}
    path = tmp_path / "last.json"
    save_checkpoint(path, model, classes=NAMES, mean=MEAN, extra={}, state=state)
    assert torch.equal(load_state(path)["momentum.x"], state["momentum.x"])
    edit(path, state="../x.safetensors")
    with pytest.raises(CheckpointError, match="last.json: state: expected the name"):
        load_state(path)


def test_checkpoint_without_state_cannot_be_resumed(saved):
    with pytest.raises(CheckpointError, match="best.json: has no training state"):
        load_state(saved)


def test_saving_again_removes_only_the_replaced_weights(tmp_path, model, other):
    state = {"a": torch.zeros(2)}
    save_checkpoint(tmp_path / "last.json", model, classes=NAMES, mean=MEAN, extra={}, state=state)
    save_checkpoint(tmp_path / "best.json", model, classes=NAMES, mean=MEAN, extra={})
    first = weights_of(tmp_path / "last.json")
    (tmp_path / "copy.json").write_bytes((tmp_path / "last.json").read_bytes())
    mine = tmp_path / "last-notes.safetensors"
    mine.write_bytes(b"mine")
    stale = tmp_path / ".last.json.4242.mdssd.tmp"
    stale.write_bytes(b"half a file")

    save_checkpoint(tmp_path / "last.json", other, classes=NAMES, mean=MEAN, extra={})
    assert first.exists()  # the copy of the JSON still names it
    assert same(load_checkpoint(tmp_path / "copy.json")[0], model)
    assert mine.read_bytes() == b"mine"
    assert not stale.exists()
    (tmp_path / "copy.json").unlink()
    save_checkpoint(tmp_path / "last.json", other, classes=NAMES, mean=MEAN, extra={})
    names = sorted(path.name for path in tmp_path.iterdir())
    last, best = weights_of(tmp_path / "last.json"), weights_of(tmp_path / "best.json")
    assert names == sorted(["best.json", "last.json", mine.name, last.name, best.name])


@pytest.mark.parametrize("dying_write", [1, 2, 3])
@pytest.mark.parametrize("moment", ["writing", "renaming", "renamed"])
def test_death_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    tmp_path, model, other, monkeypatch, moment, dying_write
):
    """Die before or after each of the three writes (weights, state, JSON), without cleaning up."""
    path = tmp_path / "last.json"

    def save(model, step):
        state = {"s": torch.full((2,), float(step))}
        extra = {"step": step}
        save_checkpoint(path, model, classes=NAMES, mean=MEAN, extra=extra, state=state)

    save(model, 1)

    class Killed(BaseException):
        pass

    calls = {"fsync": 0, "replace": 0}
    fsync, replace = files.os.fsync, files.os.replace

    def dying_replace(source, target):
        calls["replace"] += 1
        if moment == "renaming" and calls["replace"] == dying_write:
            raise Killed
        replace(source, target)
        if moment == "renamed" and calls["replace"] == dying_write:
            raise Killed

    def dying_fsync(descriptor):
        calls["fsync"] += 1
        # Each write synchronises the file before the rename and the folder after it.
        if moment == "writing" and calls["fsync"] == 2 * dying_write - 1:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(files.os, "replace", dying_replace)
    monkeypatch.setattr(files.os, "fsync", dying_fsync)
    monkeypatch.setattr(files.Path, "unlink", lambda *args, **kwargs: None)
    with pytest.raises(Killed):
        save(other, 2)
    monkeypatch.undo()

    committed = moment == "renamed" and dying_write == 3
    loaded, meta = load_checkpoint(path)
    assert meta["training"]["step"] == (2 if committed else 1)
    assert same(loaded, other if committed else model)
    assert load_state(path)["s"][0] == meta["training"]["step"]
    save(other, 3)  # leftovers of the dead process are removed
    assert load_checkpoint(path)[1]["training"]["step"] == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_missing(tmp_path, saved):
    with pytest.raises(CheckpointError, match="nothing.json: no such file"):
        load_checkpoint(tmp_path / "nothing.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: the folder holds no checkpoint"):
        load_checkpoint(tmp_path / "empty")
    weights = weights_of(saved)
    weights.unlink()
    with pytest.raises(CheckpointError, match=f"{weights.name}: no such file, though best.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_weights_cut_short(saved, keep):
    weights = weights_of(saved)
    content = weights.read_bytes()
    size = int(len(content) * keep) if isinstance(keep, float) else keep
    weights.write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=f"{weights.name}: .*cut short"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=weights.name):
        load_checkpoint(weights)


def test_json_cut_short(saved):
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="best.json: is not JSON, or is cut short"):
        load_checkpoint(saved)


def test_changed_weights_are_noticed(saved):
    weights = weights_of(saved)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{weights.name}: .*SHA-256 differs"):
        load_checkpoint(saved)


class Bomb:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


@pytest.mark.parametrize("protocol", [2, 5, "torch"])
@pytest.mark.parametrize("place", ["weights", "json", "alone"])
def test_pickle_in_disguise_is_refused_unread(saved, tmp_path, protocol, place):
    victim = tmp_path / "executed"
    file = {"weights": weights_of(saved), "json": saved, "alone": tmp_path / "x.safetensors"}[place]
    if protocol == "torch":
        torch.save({"w": torch.zeros(2), "bomb": Bomb(victim)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(victim), protocol))
    if place == "weights":  # even if the JSON states its digest
        content = file.read_bytes()
        digest = checkpoint.hashlib.sha256(content).hexdigest()
        edit(saved, sha256=digest, bytes=len(content))
    with pytest.raises(CheckpointError, match=f"{file.name}: is a pickle"):
        load_checkpoint(saved if place == "weights" else file)
    assert not victim.exists()


def test_pickle_that_starts_like_safetensors_is_refused(saved, tmp_path):
    weights = weights_of(saved)
    content = b"\x80\x02\0\0\0\0\0\0{" + b"x" * 2000
    weights.write_bytes(content)
    edit(saved, sha256=checkpoint.hashlib.sha256(content).hexdigest(), bytes=len(content))
    with pytest.raises(CheckpointError, match=f"{weights.name}: is not a sound safetensors file"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"format": "other"}', "[" * 100_000, '{"a": 1', "\0", '"\ud800"'],
    ids=["empty", "list", "number", "object", "other", "deep", "open", "nul", "surrogate"],
)
def test_json_of_another_kind(tmp_path, text):
    path = tmp_path / "best.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="best.json: is not "):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("version", None),
        ("model", "ssd300"),
        ("model", {"model": "ssd999"}),
        ("model", {"model": "ssd300", "width": "wide"}),
        ("model", {}),
        ("classes", []),
        ("classes", ["cat"]),
        ("classes", ["cat", "cat"]),
        ("classes", ["cat", ""]),
        ("classes", "ab"),
        ("mean", [1, 2]),
        ("mean", [1, 2, "3"]),
        ("input_size", 512),
        ("input_size", "300"),
        ("priors", {"count": 24564}),
        ("priors", None),
        ("training", None),
        ("sha256", None),
        ("bytes", -1),
        ("weights", None),
        ("weights", "../x.safetensors"),
        ("weights", "/etc/x.safetensors"),
        ("weights", "a/b.safetensors"),
        ("weights", "..\\x.safetensors"),
        ("weights", "c:x.safetensors"),
        ("weights", "x.bin"),
        ("weights", "a\0.safetensors"),
    ],
)
def test_json_with_a_bad_entry(saved, field, value):
    edit(saved, **{field: value})
    with pytest.raises(CheckpointError, match=r"best\.json: "):
        load_checkpoint(saved)


def test_name_that_leaves_the_folder_is_refused_though_the_file_is_there(tmp_path, model):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "best.json"
    save_checkpoint(path, model, classes=NAMES, mean=MEAN, extra={})
    weights_of(path).rename(tmp_path / "w.safetensors")
    edit(path, weights="../w.safetensors")
    with pytest.raises(CheckpointError, match="weights: expected the name .* got '../w"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_classes=4), r"expected shape \[12, \d+, 3, 3\], got \[16, \d+, 3, 3\]"),
        (dict(width=0.25), "expected shape"),
        (dict(batch_norm=False), "is missing"),
        (dict(build=ssd512), "is not of this model"),
    ],
    ids=["classes", "width", "batch norm", "size"],
)
def test_weights_of_another_model(saved, tmp_path, options, message):
    names = ["a", "b", "c"][: options.get("num_classes", 3) - 1]
    save_checkpoint(tmp_path / "o.json", small(**options), classes=names, mean=MEAN, extra={})
    theirs = read_meta(tmp_path / "o.json")
    edit(saved, **{key: theirs[key] for key in ("weights", "sha256", "bytes")})
    with pytest.raises(CheckpointError, match=rf"{theirs['weights']}: .*do not fit.*{message}"):
        load_checkpoint(saved)


def test_weights_of_another_dtype(saved, tmp_path):
    weights = weights_of(saved)
    tensors = safetensors.torch.load_file(weights)
    name = "trunk.fc6.conv.weight"
    tensors[name] = tensors[name].long()
    content = safetensors.torch.save(tensors)
    weights.write_bytes(content)
    edit(saved, sha256=checkpoint.hashlib.sha256(content).hexdigest(), bytes=len(content))
    with pytest.raises(CheckpointError, match=f"{name}: expected torch.float32, got torch.int64"):
        load_checkpoint(saved)


def test_other_classes_or_size_than_asked_for(saved):
    load_checkpoint(saved, classes=NAMES, input_size=300)
    with pytest.raises(CheckpointError, match=r"expected 1 \(cow\); got 2 \(cat, dog\)"):
        load_checkpoint(saved, classes=["cow"])
    with pytest.raises(CheckpointError, match="other classes"):
        load_checkpoint(saved, classes=NAMES[::-1])
    with pytest.raises(CheckpointError, match="expected 512, got 300"):
        load_checkpoint(saved, input_size=512)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.txt", {}, "expected a .json"),
        ("a.json", {"classes": ["cat"]}, "expected 2 names"),
        ("a.json", {"classes": ["cat", "cat"]}, "expected distinct"),
        ("a.json", {"extra": {"loss": float("nan")}}, "JSON"),
    ],
)
def test_save_refuses_and_writes_nothing(tmp_path, model, name, options, message):
    options = {"classes": NAMES, "extra": {}, **options}
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / name, model, mean=MEAN, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "half"), [(float("nan"), False), (float("inf"), False), (1e5, True)]
)
def test_weights_that_are_not_finite_are_not_saved(saved, value, half):
    before = saved.read_bytes()
    broken = small()
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = value
    with pytest.raises(ValueError, match=r"expected finite weights, \S+ has NaN or infinity"):
        save_checkpoint(saved, broken, classes=NAMES, mean=MEAN, extra={}, half=half)
    assert saved.read_bytes() == before
    load_checkpoint(saved)
