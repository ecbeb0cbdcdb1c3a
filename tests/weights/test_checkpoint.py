"""Checkpoints: round trip, atomicity, and clear errors for files that are not checkpoints."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch

from mdssd import ssd300, ssd512
from mdssd.system import files
from mdssd.weights import checkpoint
from mdssd.weights.checkpoint import load_checkpoint, load_state, save_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, digest_of, read_meta

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
    """Change entries of the JSON as its writer would, with a digest that fits."""
    meta = json.loads(path.read_text())
    meta.update(changes)
    meta["digest"] = digest_of(meta)
    path.write_text(json.dumps(meta))


def edit_weights(path, change):
    """Change the tensors of the weights file, and the JSON so that it fits."""
    tensors = safetensors.torch.load_file(weights_of(path))
    change(tensors)
    content = safetensors.torch.save(tensors)
    replace_weights(path, content)


def replace_weights(path, content):
    weights_of(path).write_bytes(content)
    edit(path, sha256=checkpoint.hashlib.sha256(content).hexdigest(), bytes=len(content))


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
        replace_weights(saved, file.read_bytes())
    with pytest.raises(CheckpointError, match=f"{file.name}: is a pickle"):
        load_checkpoint(saved if place == "weights" else file)
    assert not victim.exists()


def test_pickle_that_starts_like_safetensors_is_refused(saved, tmp_path):
    weights = weights_of(saved)
    content = b"\x80\x02\0\0\0\0\0\0{" + b"x" * 2000
    replace_weights(saved, content)
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
        ("version", 0),
        ("version", 3),
        ("version", True),
        ("version", None),
        ("model", "ssd300"),
        ("model", {"model": "ssd999"}),
        ("model", {"model": "ssd300", "width": "wide"}),
        ("model", {}),
        ("model", {"model": "ssd300", "num_classes": 3, "width": 4.5}),
        ("model", {"model": "ssd300", "num_classes": 100_000}),
        ("model", {"model": "ssd300", "num_classes": 10**400}),
        ("classes", []),
        ("classes", ["cat", "\ud800"]),
        ("classes", ["cat"]),
        ("classes", ["cat", "cat"]),
        ("classes", ["cat", ""]),
        ("classes", "ab"),
        ("mean", [1, 2]),
        ("mean", [1, 2, "3"]),
        ("mean", [1, 2, 10**400]),
        ("mean", [1, 2, 256]),
        ("mean", [-1, 2, 3]),
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


def test_no_changed_bit_of_the_json_goes_unnoticed(saved):
    """A changed bit is refused, or it is in a place that is not read, such as a space."""
    content, meta = saved.read_bytes(), read_meta(saved)
    accepted = set()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(damaged)
        try:
            found = read_meta(saved)
        except CheckpointError as error:
            assert str(error).startswith(f"{saved}: "), bit
        else:
            assert found == meta, bit
            accepted.add(chr(content[bit // 8]))
    assert accepted <= set("\n ")


def test_an_edited_json_is_refused_and_the_message_says_what_to_do(saved):
    saved.write_text(saved.read_text().replace('"dog"', '"dogs"'))
    with pytest.raises(CheckpointError, match="its digest differs.*load the original and save"):
        load_checkpoint(saved)


def test_version_1_has_no_digest_and_is_read(saved, model):
    meta = json.loads(saved.read_text())
    del meta["digest"]
    saved.write_text(json.dumps({**meta, "version": 1}))
    loaded, found = load_checkpoint(saved)
    assert same(loaded, model)
    assert found == {**meta, "version": 1}
    saved.write_text(json.dumps(meta))  # of version 2
    with pytest.raises(CheckpointError, match="its digest differs"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1, "version": 2}', "the entry 'version' occurs twice"),
        ('{"mean": [NaN]}', "expected finite numbers, got 'NaN'"),
        ('{"mean": [-Infinity]}', "expected finite numbers, got '-Infinity'"),
        ('{"mean": [1e400]}', "expected finite numbers, got '1e400'"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "expected lists and objects at most 64 deep"),
        ('{"bytes": ' + "1" * 5000 + "}", "4300"),
        (" " * 2**24 + "{}", "has 16.8 MB, expected at most 16.8 MB"),
    ],
    ids=["repeated", "NaN", "infinity", "overflow", "deep", "digits", "long"],
)
def test_json_that_other_programs_would_read(tmp_path, text, message):
    path = tmp_path / "best.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"best.json: .*{message}"):
        load_checkpoint(path)


def spoil(name, value):
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("trunk.fc6.conv.weight", float("nan")), "trunk.fc6.conv.weight has NaN or infinity"),
        (spoil("heads.conv7.loc.bias", float("-inf")), "heads.conv7.loc.bias has NaN or infinity"),
        (
            spoil("trunk.fc7.norm.running_var", -1e-3),
            "trunk.fc7.norm.running_var has a negative variance",
        ),
    ],
    ids=["NaN", "infinity", "variance"],
)
def test_weights_that_detect_nothing_are_refused(saved, change, message):
    edit_weights(saved, change)
    with pytest.raises(CheckpointError, match=f"{weights_of(saved).name}: {message}"):
        load_checkpoint(saved)


def test_the_largest_model_takes_no_memory_before_its_weights_are_seen(saved, monkeypatch):
    """The options of a JSON can ask for 10 GB; a weights file that does not have them is small."""
    options = {**json.loads(saved.read_text())["model"], "num_classes": 10_000, "width": 4}
    edit(saved, model=options, classes=[f"class {k}" for k in range(1, 10_000)])
    seen = []
    read = checkpoint.read_checkpoint_tensors

    def spy(path, meta, kind, expected):
        seen.extend(expected.values())
        return read(path, meta, kind, expected)

    monkeypatch.setattr(checkpoint, "read_checkpoint_tensors", spy)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_checkpoint(saved)
    assert sum(tensor.nbytes for tensor in seen) > 8e9
    assert all(tensor.is_meta for tensor in seen)


@pytest.mark.parametrize("size", [2**22 + 1, 2**63], ids=["more than allowed", "more than any"])
def test_header_of_a_false_length(saved, size):
    replace_weights(saved, size.to_bytes(8, "little") + weights_of(saved).read_bytes()[8:])
    with pytest.raises(CheckpointError, match=f"is not a sound .*its header has {size} bytes"):
        load_checkpoint(saved)


def test_weights_longer_than_the_json_says(saved):
    with weights_of(saved).open("ab") as file:
        file.truncate(2**40)  # sparse, which needs no space
    with pytest.raises(CheckpointError, match=rf"has {2**40} bytes instead of \d+"):
        load_checkpoint(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("place", ["json", "weights", "alone", "folder"])
def test_named_pipes_are_refused_at_once(saved, tmp_path, place):
    pipe = {
        "json": saved,
        "weights": weights_of(saved),
        "alone": tmp_path / "x.safetensors",
        "folder": tmp_path / "best.json",
    }[place]
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    path = {"weights": saved, "folder": tmp_path}.get(place, pipe)
    with pytest.raises(CheckpointError, match=f"{pipe.name}: is a named pipe"):
        load_checkpoint(path)


def test_a_photo_in_place_of_a_checkpoint_is_named(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(CheckpointError, match="photo.jpg: is a JPEG image, not a safetensors file"):
        load_checkpoint(path)


def test_other_files_named_json_are_in_nobodys_way(tmp_path, model, other):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(2**40)
    path = tmp_path / "last.json"
    for each in (model, other):  # the second save looks for files that no JSON names
        save_checkpoint(path, each, classes=NAMES, mean=MEAN, extra={})
    assert [file.name for file in tmp_path.glob("*.safetensors")] == [weights_of(path).name]
    assert same(load_checkpoint(weights_of(path))[0], other)


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
    name = "trunk.fc6.conv.weight"
    edit_weights(saved, lambda tensors: tensors.update({name: tensors[name].long()}))
    message = f"{weights.name}: .*{name}: expected torch.float32, got I64"
    with pytest.raises(CheckpointError, match=message):
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
        ("a.json", {"classes": ["cat", "\ud800"]}, "expected one or more names"),
        ("a.json", {"extra": {"loss": float("nan")}}, "JSON"),
        ("a.json", {"extra": {"a": json.loads("[" * 100 + "]" * 100)}}, "at most 64 deep"),
        ("a.json", {"mean": (1, 2, float("nan"))}, "expected three numbers from 0 to 255"),
    ],
)
def test_save_refuses_and_writes_nothing(tmp_path, model, name, options, message):
    options = {"classes": NAMES, "mean": MEAN, "extra": {}, **options}
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / name, model, **options)
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
