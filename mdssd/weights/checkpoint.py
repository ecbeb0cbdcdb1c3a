"""Checkpoints: weights in a safetensors file, everything else in a small JSON beside it.

A checkpoint is the JSON. It names its weights file, which is in the same folder. The name of the
weights file contains the start of its SHA-256, so that no save overwrites the weights of another
checkpoint. A save writes the weights first and then renames the JSON into place, which commits it.
If the process dies at any moment, the folder contains either the old checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mdssd.models.base import SingleShotDetector
from mdssd.models.build import build
from mdssd.models.options import PRIOR_OPTIONS
from mdssd.system.files import TEMPORARY_SUFFIX, atomic_write
from mdssd.version import __version__
from mdssd.weights.checkpoint_json import (
    FORMAT,
    VERSION,
    CheckpointError,
    find_checkpoint,
    is_safetensors,
    listed,
    not_safetensors,
    read_meta,
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

    Raises:
        ValueError: path is not a .json, classes do not fit the model, a weight is not finite (or
            exceeds float16, with half), or `extra` is not JSON. Nothing is written then.
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
    weights = _to_bytes(_weights(model, half))
    weights_digest = hashlib.sha256(weights).hexdigest()
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "mdssd": __version__,
        "model": model.config(),
        "input_size": model.input_size,
        "classes": list(classes),
        "mean": [float(value) for value in mean],
        "priors": _prior_facts(model),
        "weights": f"{path.stem}-{weights_digest[:12]}.safetensors",
        "sha256": weights_digest,
        "bytes": len(weights),
        "training": dict(extra),
    }
    files = {meta["weights"]: weights}
    if state is not None:
        data = _to_bytes({name: tensor.detach() for name, tensor in state.items()})
        digest = hashlib.sha256(data).hexdigest()
        meta["state"] = f"{path.stem}-state-{digest[:12]}.safetensors"
        meta["state_sha256"] = digest
        meta["state_bytes"] = len(data)
        files[meta["state"]] = data
    text = json.dumps(meta, indent=1, allow_nan=False) + "\n"
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
    for stale in path.parent.glob(f".step-*.json.*{TEMPORARY_SUFFIX}"):  # left by a killed process
        stale.unlink(missing_ok=True)
    if count > 1:
        with atomic_write(path.with_name(f"step-{step:08}.json"), "wb") as file:
            file.write(path.read_bytes())
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
    input_size: int | None = None,
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
            another format, inconsistent, or has other classes or another input size.

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
    if input_size is not None and input_size != meta["input_size"]:
        raise CheckpointError(
            f"{path}: is for another input size: expected {input_size}, got {meta['input_size']}"
        )
    tensors = _read_tensors(path, meta, "")
    try:
        model = build(meta["model"])
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {error}") from None
    _check_meta_fits(path, meta, model)
    _check_tensors_fit(path.with_name(meta["weights"]), tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.to(device).eval(), meta


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load the tensors given to `save_checkpoint` as `state`, on the CPU.

    Raises:
        CheckpointError: as for `load_checkpoint`, or the checkpoint has no such tensors.
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    if "state" not in meta:
        raise CheckpointError(f"{path}: has no training state, so training cannot resume from it")
    return _read_tensors(path, meta, "state")


def check_classes(where: str, classes: Sequence[str], num_classes: int) -> None:
    """Check that class names are distinct strings, one fewer than the model's classes.

    Raises:
        ValueError: they are not; the message begins with `where`.
    """
    if not classes or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"{where}: classes: expected one or more names, got {classes!r}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"{where}: classes: expected distinct names, got {listed(classes)}")
    if len(classes) + 1 != num_classes:
        raise ValueError(
            f"{where}: classes: expected {num_classes - 1} names for a model of {num_classes} "
            f"classes with background, got {len(classes)}: {listed(classes)}"
        )


def _weights(model: nn.Module, half: bool) -> dict[str, Tensor]:
    parameters = {name for name, _ in model.named_parameters()}
    weights = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach()
        if half and name in parameters and tensor.is_floating_point():
            tensor = tensor.half()
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"save_checkpoint: model: expected finite weights, {name} has NaN or infinity"
                + (" in float16" if half else "")
            )
        weights[name] = tensor
    return weights


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    )


def _prior_facts(model: SingleShotDetector) -> dict[str, Any]:
    facts = {name: getattr(model.options, name) for name in PRIOR_OPTIONS}
    return {"count": len(model.priors), **facts}


def _remove_leftovers(path: Path) -> None:
    """Remove this checkpoint's files that no JSON names, and temporary files of killed saves."""
    stem = re.escape(path.stem)
    weights = re.compile(rf"{stem}(-state)?-[0-9a-f]{{12}}\.safetensors")
    temporary = re.compile(rf"\.({stem}\.json|{weights.pattern})\.\d+{re.escape(TEMPORARY_SUFFIX)}")
    try:
        named = "".join(p.read_text(encoding="utf-8") for p in path.parent.glob("*.json"))
    except (OSError, UnicodeDecodeError):
        return
    for file in path.parent.iterdir():
        unnamed = weights.fullmatch(file.name) and file.name not in named
        if unnamed or temporary.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _read_tensors(path: Path, meta: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """Read the file that the JSON names as its weights, or as its state if `kind` is "state"."""
    prefix = f"{kind}_" if kind else ""
    file = path.with_name(meta[kind or "weights"])
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file, though {path.name} names it") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    expected = meta[f"{prefix}bytes"]
    if not is_safetensors(content):
        raise CheckpointError(not_safetensors(file, content))
    if len(content) < expected:
        raise CheckpointError(f"{file}: is cut short: {len(content)} of {expected} bytes")
    if hashlib.sha256(content).hexdigest() != meta[f"{prefix}sha256"]:
        raise CheckpointError(
            f"{file}: is not the file that {path.name} was written with: its SHA-256 differs"
        )
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: is not a sound safetensors file ({error})") from None


def _check_meta_fits(path: Path, meta: dict[str, Any], model: SingleShotDetector) -> None:
    facts = (
        ("classes", len(meta["classes"]), model.num_classes - 1),
        ("input_size", meta["input_size"], model.input_size),
        ("priors", meta["priors"].get("count"), len(model.priors)),
    )
    for name, got, expected in facts:
        if got != expected:
            raise CheckpointError(
                f"{path}: {name}: its model {meta['model'].get('model')} has {expected}, "
                f"the file says {got}"
            )


def _check_tensors_fit(
    file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is not of this model" for name in tensors if name not in expected]
    for name, want in expected.items():
        got = tensors.get(name)
        if got is None:
            continue
        if got.shape != want.shape:
            faults.append(f"{name}: expected shape {list(want.shape)}, got {list(got.shape)}")
        elif got.is_floating_point() != want.is_floating_point():
            faults.append(f"{name}: expected {want.dtype}, got {got.dtype}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{file}: the weights do not fit the model: {'; '.join(faults[:3])}{more}"
        )
