"""Checkpoints: weights in a safetensors file, everything else in a small JSON beside it.

A checkpoint is the JSON. It names its weights file, which is in the same folder. The name of the
weights file contains the start of its SHA-256, so that no save overwrites the weights of another
checkpoint. A save writes the weights first and then renames the JSON into place, which commits it.
If the process dies at any moment, the folder contains either the old checkpoint or the new one.

The JSON has the SHA-256 of the weights, and a digest of all its other entries. So no changed byte
goes unnoticed, in either file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mdssd.models.base import SingleShotDetector
from mdssd.models.build import build
from mdssd.models.options import PRIOR_OPTIONS
from mdssd.priors.maps import InputSize
from mdssd.system.files import atomic_write, read_regular, remove_all_leftovers
from mdssd.version import __version__
from mdssd.weights.checkpoint_json import (
    FORMAT,
    JSON_BYTES,
    VERSION,
    CheckpointError,
    check_depth,
    digest_of,
    find_checkpoint,
    is_class_name,
    is_mean,
    is_quantized,
    listed,
    read_meta,
    shortened,
)
from mdssd.weights.checkpoint_tensors import (
    fault_of,
    read_checkpoint_network,
    read_checkpoint_tensors,
)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: SingleShotDetector,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    extra: Mapping[str, Any],
    half: bool = False,
    state: Mapping[str, Tensor] | None = None,
    network: bytes | None = None,
) -> None:
    """Write a checkpoint: first the weights, then the JSON that names them.

    Afterwards it removes the weights of earlier saves to the same path, except those that another
    JSON in the folder names: a copy of the JSON under another name keeps its weights.

    Args:
        path: the JSON to write, `<folder>/<stem>.json`; the folder must exist. The weights are
            written to `<stem>-<12 digits of their SHA-256>.safetensors` in the same folder.
        model: a model of `mdssd.models`, on any device.
        classes: the names of labels 1, 2, ...; the background is not among them.
        mean: the three values (RGB, 0-255) that are subtracted from an image.
        extra: the JSON's "training" entry: anything that JSON can represent.
        half: store parameters as float16, for half the size. They are loaded as float32. Buffers
            are not converted, because the running variance of a batch norm can exceed float16.
        state: tensors needed to resume training, for a second file; see `load_state`.
        network: the int8 form of the network as ONNX, which is stored instead of the weights; the
            file then ends in .onnx. See `load_quantized`.

    Raises:
        ValueError: path is not a .json, classes do not fit the model, the mean is not of pixels, a
            weight is not finite (or exceeds float16, with half), a variance is negative, or
            `extra` is not JSON. Nothing is written then.
        OSError: the folder is missing or cannot be written.

    Example:
        >>> from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint
        >>> import tempfile, mdssd
        >>> model = mdssd.ssd300(3, width=0.0625)
        >>> facts = {"classes": ["cat", "dog"], "mean": (123, 117, 104), "extra": {"epoch": 7}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/last.json", model, **facts)
        ...     load_checkpoint(folder)[1]["training"]
        {'epoch': 7}
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"save_checkpoint: path: expected a .json, got {str(path)!r}")
    check_classes("save_checkpoint", classes, model.num_classes)
    mean = [float(value) for value in mean]
    if not is_mean(mean):
        raise ValueError(f"save_checkpoint: mean: expected three numbers from 0 to 255, got {mean}")
    weights = _to_bytes(_weights(model, half)) if network is None else network
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "mdssd": __version__,
        "model": model.config(),
        "input_size": _in_json(model.input_size),
        "classes": list(classes),
        "mean": mean,
        "priors": _prior_facts(model),
        **_facts_of("", path.stem, weights, "safetensors" if network is None else "onnx"),
        "training": dict(extra),
    }
    files = {meta["weights"]: weights}
    if state is not None:
        data = _to_bytes({name: tensor.detach() for name, tensor in state.items()})
        meta |= _facts_of("state", path.stem, data)
        files[meta["state"]] = data
    text = _signed(meta)
    try:
        for name, data in files.items():
            with atomic_write(path.with_name(name), "wb") as file:
                file.write(data)
        with atomic_write(path) as file:
            file.write(text)
    finally:
        # Also after a failure such as a full disk, which leaves weights that no JSON names.
        _remove_leftovers(path)


def keep_last(path: str | os.PathLike[str], step: int, count: int) -> None:
    """Keep a copy of this checkpoint when the next save replaces it, and drop old copies.

    The copy is a copy of the JSON, `step-<iterations, 8 digits>.json` in the same folder, which
    keeps the weights in place. Of the copies up to this iteration the last `count` remain. With a
    count of 1 there is no copy, because the checkpoint itself is the last.

    Args:
        path: the JSON of a checkpoint.
        step: number of iterations completed.
        count: number of checkpoints to keep.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    if count > 1:
        with atomic_write(path.with_name(f"step-{step:08}.json"), "wb") as file:
            file.write(read_regular(path, JSON_BYTES))
    copies = {
        int(match[1]): file
        for file in path.parent.iterdir()
        if (match := re.fullmatch(r"step-(\d{8,})\.json", file.name))
    }
    past = sorted(at for at in copies if at <= step)
    dropped = past if count == 1 else past[:-count]
    for at in dropped:
        copies[at].unlink()
    if dropped:
        _remove_leftovers(path)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    classes: Sequence[str] | None = None,
    input_size: InputSize | None = None,
) -> tuple[SingleShotDetector, dict[str, Any]]:
    """Load the model of a checkpoint, in float32 and evaluation mode.

    Nothing is ever unpickled.

    Args:
        path: the JSON, its weights file, or a folder (best.json if it exists, else last.json).
        device: the device of the returned model.
        classes: the names that the checkpoint must have; None accepts any.
        input_size: the input size that the checkpoint must have; None accepts any.

    Returns:
        The model, and the content of the JSON.

    Raises:
        CheckpointError: the file is missing, cut short, changed since it was written, a pickle, of
            another format, inconsistent, has weights that are not finite or a negative variance,
            or has other classes or another input size.

    Example:
        >>> from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint
        >>> import tempfile, mdssd
        >>> model = mdssd.ssd300(3, width=0.0625)
        >>> facts = {"classes": ["cat", "dog"], "mean": (123, 117, 104), "extra": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/best.json", model, **facts)
        ...     again, meta = load_checkpoint(folder)
        >>> again.name, meta["classes"]
        ('ssd300', ['cat', 'dog'])
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    if classes is not None and list(classes) != meta["classes"]:
        raise CheckpointError(
            f"{path}: is for other classes: expected {listed(classes)}; "
            f"got {listed(meta['classes'])}"
        )
    if input_size is not None and _in_json(input_size) != meta["input_size"]:
        raise CheckpointError(
            f"{path}: is for another input size: expected {input_size}, got {meta['input_size']}"
        )
    if is_quantized(meta):
        raise CheckpointError(
            f"{path}: is an int8 network, which detects (detect, eval, export), but can neither be "
            "trained nor quantised again; expected the checkpoint that it was made from"
        )
    model = _empty_model(path, meta)
    weights = read_checkpoint_tensors(path, meta, "", model.state_dict())
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval(), meta


def load_quantized(
    path: str | os.PathLike[str],
) -> tuple[SingleShotDetector, dict[str, Any], bytes]:
    """Load a checkpoint that `mdssd quantize` has written.

    Args:
        path: the JSON, or the .onnx file beside it.

    Returns:
        The model that was quantised, whose weights are on the meta device, so that it has priors
        and options but cannot run; the content of the JSON; and the int8 network as ONNX.

    Raises:
        CheckpointError: as for `load_checkpoint`, or the checkpoint is not of an int8 network.
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    if not is_quantized(meta):
        raise CheckpointError(f"{path}: is not an int8 network")
    return _empty_model(path, meta), meta, read_checkpoint_network(path, meta)


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load the tensors given to `save_checkpoint` as `state`, on the CPU.

    Raises:
        CheckpointError: as for `load_checkpoint`, or the checkpoint has no such tensors.
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    if "state" not in meta:
        raise CheckpointError(f"{path}: has no training state, so training cannot resume from it")
    return read_checkpoint_tensors(path, meta, "state")


def check_classes(where: str, classes: Sequence[str], num_classes: int) -> None:
    """Check that class names are distinct strings, one fewer than the model's classes.

    Raises:
        ValueError: they are not; the message begins with `where`.
    """
    if not classes or not all(map(is_class_name, classes)):
        raise ValueError(f"{where}: classes: expected one or more names, got {classes!r}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"{where}: classes: expected distinct names, got {listed(classes)}")
    if len(classes) + 1 != num_classes:
        raise ValueError(
            f"{where}: classes: expected {num_classes - 1} names for a model of {num_classes} "
            f"classes with background, got {len(classes)}: {listed(classes)}"
        )


def _empty_model(path: Path, meta: dict[str, Any]) -> SingleShotDetector:
    """Build the model of a JSON without weights: the sizes in it may be of any model."""
    try:
        with torch.device("meta"):
            model = build(meta["model"])
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {error}") from None
    _check_meta_fits(path, meta, model)
    return model


def _weights(model: nn.Module, half: bool) -> dict[str, Tensor]:
    parameters = {name for name, _ in model.named_parameters()}
    weights = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach()
        if half and name in parameters and tensor.is_floating_point():
            tensor = tensor.half()
        if fault := fault_of(name, tensor):
            raise ValueError(
                f"save_checkpoint: model: expected finite weights, {fault}"
                + (" in float16" if half else "")
            )
        weights[name] = tensor
    return weights


def _facts_of(kind: str, stem: str, content: bytes, ending: str = "safetensors") -> dict[str, Any]:
    """Return the entries of the JSON for a file beside it: its name, SHA-256 and size."""
    digest = hashlib.sha256(content).hexdigest()
    name = "-".join(part for part in (stem, kind, digest[:12]) if part)
    prefix = f"{kind}_" if kind else ""
    return {
        kind or "weights": f"{name}.{ending}",
        f"{prefix}sha256": digest,
        f"{prefix}bytes": len(content),
    }


def _signed(meta: Mapping[str, Any]) -> str:
    """Return the text of the JSON, with the digest of its entries."""
    meta = json.loads(json.dumps(meta, allow_nan=False))  # as it will be read
    check_depth(meta)
    return json.dumps({**meta, "digest": digest_of(meta)}, indent=1) + "\n"


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    )


def _prior_facts(model: SingleShotDetector) -> dict[str, Any]:
    config = model.config()
    return {"count": len(model.priors), **{name: config[name] for name in PRIOR_OPTIONS}}


def _remove_leftovers(path: Path) -> None:
    """Remove this checkpoint's files that no JSON names, and temporary files of killed saves."""
    remove_all_leftovers(path.parent)
    weights = re.compile(rf"{re.escape(path.stem)}(-state)?-[0-9a-f]{{12}}\.(safetensors|onnx)")
    named = b""
    for file in path.parent.glob("*.json"):
        try:
            named += read_regular(file, JSON_BYTES)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EISDIR, errno.EFBIG):
                return
    for file in path.parent.iterdir():
        if weights.fullmatch(file.name) and file.name.encode() not in named:
            file.unlink(missing_ok=True)


def _in_json(input_size: InputSize) -> int | list[int]:
    return input_size if isinstance(input_size, int) else list(input_size)


def _check_meta_fits(path: Path, meta: dict[str, Any], model: SingleShotDetector) -> None:
    facts = (
        ("classes", len(meta["classes"]), model.num_classes - 1),
        ("input_size", meta["input_size"], _in_json(model.input_size)),
        ("priors", meta["priors"].get("count"), len(model.priors)),
    )
    for name, got, expected in facts:
        if got != expected:
            raise CheckpointError(
                f"{path}: {name}: its model {meta['model'].get('model')} has {expected}, "
                f"the file says {got}"
            )
    config, said = model.config(), meta["priors"]
    for name in PRIOR_OPTIONS:
        if name in said and said[name] != config[name]:
            raise CheckpointError(
                f"{path}: priors: {name}: its model has {shortened(config[name])}, "
                f"the file says {shortened(said[name])}"
            )
