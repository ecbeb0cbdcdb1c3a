"""Damaged checkpoints and weights of other projects: loaded as they were, or refused by name."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import damaged, damaged_bytes
from torch import Tensor

import mdssd
from mdssd.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mdssd.weights.checkpoint_json import digest_of, read_meta
from mdssd.weights.foreign_files import read_tensors

MEAN = (123.0, 117.0, 104.0)


class Saved:
    """A checkpoint in a folder, and the bytes of its two files."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        model = mdssd.ssd300(3, width=0.03125, batch_norm=True)
        self.path = folder / "m.json"
        save_checkpoint(self.path, model, classes=["a", "b"], mean=MEAN, extra={"step": 3})
        self.meta = read_meta(self.path)
        self.weights_path = folder / self.meta["weights"]
        self.json, self.weights = self.path.read_bytes(), self.weights_path.read_bytes()
        self.state = model.state_dict()

    def check(self, json_bytes: bytes, weights: bytes) -> bool:
        """Write both files and load them; return whether they were accepted."""
        self.path.write_bytes(json_bytes)
        self.weights_path.write_bytes(weights)
        try:
            model, meta = load_checkpoint(self.path)
        except CheckpointError as error:
            assert str(self.path.parent) in str(error), error
            return False
        assert len(meta["classes"]) == model.num_classes - 1
        assert all(t.isfinite().all() for t in model.state_dict().values())
        return True


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("checkpoint"))


@given(data=st.data())
def test_changed_bytes_of_the_json_are_noticed(saved: Saved, data: st.DataObject) -> None:
    content = data.draw(damaged_bytes(saved.json))
    accepted = saved.check(content, saved.weights)
    assert not accepted or json.loads(content) == saved.meta


@given(data=st.data())
def test_changed_bytes_of_the_weights_are_noticed(saved: Saved, data: st.DataObject) -> None:
    content = data.draw(damaged_bytes(saved.weights))
    assert saved.check(saved.json, content) == (content == saved.weights)


@given(data=st.data())
def test_a_json_that_lies(saved: Saved, data: st.DataObject) -> None:
    # As a hostile program would write it: the digest is right, the entries are not.
    meta = data.draw(damaged(saved.meta))
    if isinstance(meta, dict):
        try:
            meta["digest"] = digest_of(meta)
        except ValueError:  # a NaN, which has no digest
            pass
    text = json.dumps(meta, ensure_ascii=data.draw(st.booleans()))
    saved.check(text.encode("utf-8", "surrogatepass"), saved.weights)


@given(data=st.data())
@example(data=None)
def test_weights_that_lie(saved: Saved, data: st.DataObject | None) -> None:
    # The header of the safetensors file, or its numbers, are changed, and both digests are right.
    size = struct.unpack("<Q", saved.weights[:8])[0]
    header, numbers = json.loads(saved.weights[8 : 8 + size]), saved.weights[8 + size :]
    if data is None:
        numbers = b"\xff" * len(numbers)  # NaN
    else:
        header = data.draw(damaged(header)) if data.draw(st.booleans()) else header
        numbers = data.draw(damaged_bytes(numbers)) if data.draw(st.booleans()) else numbers
    text = json.dumps(header).encode()
    weights = struct.pack("<Q", len(text)) + text + numbers
    digest = hashlib.sha256(weights).hexdigest()
    meta: dict[str, Any] = saved.meta | {"sha256": digest, "bytes": len(weights)}
    meta["digest"] = digest_of(meta)
    accepted = saved.check(json.dumps(meta).encode(), weights)
    assert data is not None or not accepted


def varint(value: int) -> bytes:
    """Write a number as protobuf does."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes) -> bytes:
    """Write a field of bytes as protobuf does."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def caffe_model() -> bytes:
    """Write a Caffe model of one layer with a weight [2, 3] and a bias [2]."""
    shapes = {(2, 3): range(6), (2,): range(2)}
    blobs = b"".join(
        field(
            7,
            field(7, field(1, b"".join(map(varint, shape))))
            + field(5, struct.pack(f"<{len(v)}f", *v)),
        )
        for shape, v in shapes.items()
    )
    return field(1, b"net") + field(100, field(1, b"conv") + blobs)


def tensor_files(folder: Path) -> dict[str, bytes]:
    """Return small files of each format that weights come in."""
    tensors = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.zeros(2)}
    torch.save(tensors, folder / "zip.pth")
    torch.save(tensors, folder / "pickle.pth", _use_new_zipfile_serialization=False)
    return {
        "safetensors": safetensors.torch.save(tensors),
        "zip": (folder / "zip.pth").read_bytes(),
        "pickle": (folder / "pickle.pth").read_bytes(),
        "caffe": caffe_model(),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("weights")
    return folder / "weights", tensor_files(folder)


def read(path: Path, content: bytes) -> dict[str, Tensor] | None:
    path.write_bytes(content)
    try:
        return read_tensors("load", path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return None


FORMATS = ("safetensors", "zip", "pickle", "caffe")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_file_is_read(files: tuple[Path, dict[str, bytes]], kind: str) -> None:
    tensors = read(files[0], files[1][kind])
    assert tensors is not None and tensors["conv.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
def test_a_damaged_file_of_weights(
    files: tuple[Path, dict[str, bytes]], kind: str, data: st.DataObject
) -> None:
    path, contents = files
    tensors = read(path, data.draw(damaged_bytes(contents[kind]))) or {}
    for tensor in tensors.values():
        assert tensor.numel() <= 1000
