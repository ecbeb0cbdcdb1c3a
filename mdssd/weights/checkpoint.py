"""Checkpoints: weights in a safetensors file, everything else in a small JSON beside it.

A checkpoint is the JSON. It names its weights file, which lies in the same folder and carries the
start of its own SHA-256 in its name, so that no save ever overwrites the weights of another
checkpoint. A save writes the weights, then the JSON; the rename of the JSON is the commit point.
Whenever the process dies, the folder holds the old checkpoint or the new one, whole.
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

FORMAT = "mdssd checkpoint"
VERSION = 1
# What torch.save writes: a zip archive, or a bare pickle of protocol 2 to 5.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file and the reason."""


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
    """Write a checkpoint: weights, then the JSON that names them, each whole or not at all.

    Weights that an earlier save under the same name left behind are then removed, unless any JSON
    of the folder still names them (a copy of the JSON under another name keeps its weights).

    Args:
        path: the JSON to write, `<folder>/<stem>.json`; the folder must exist. The weights go to
            `<stem>-<SHA-256, 12 digits>.safetensors` beside it.
        model: a model of `mdssd.models`, on any device.
        classes: the names of labels 1, 2, ...; the background is not among them.
        mean: the three values (RGB, 0-255) that are subtracted from an image.
        extra: facts for the JSON's "training" entry: whatever JSON can hold.
        half: store parameters as float16 (half the size; loaded back to float32). Buffers stay
            as they are, because the running variance of a batch norm can exceed float16.
        state: tensors needed to go on with training, for a second file; see `load_state`.

    Raises:
        ValueError: path is not a .json, classes do not fit the model, a weight is not finite (or
            not in float16, with half), or `extra` is not JSON. Nothing is written then.
        OSError: the folder is missing or cannot be written.
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
        # Also after a failure, such as a full disk: the weights that no JSON has come to name.
        _remove_leftovers(path)


def keep_last(path: str | os.PathLike[str], step: int, count: int) -> None:
    """Let this checkpoint outlast the next ones that are saved under its name.

    A copy of its JSON beside it, `step-<iterations, 8 digits>.json`, keeps its files in place. Of
    such copies up to this iteration the last `count` stay, with their files; with a count of 1
    there is no copy, because the checkpoint itself is the last.

    Args:
        path: the JSON of a checkpoint.
        step: iterations completed.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    for stale in path.parent.glob(f".step-*.json.*{TEMPORARY_SUFFIX}"):  # of a killed process
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
    """Rebuild the model of a checkpoint; give it and the JSON's content.

    Nothing is ever unpickled. The model is in float32 and in eval mode.

    Args:
        path: the JSON, or its weights file, or a folder (its best.json, else its last.json).
        device: where the model goes.
        classes, input_size: what the caller needs the checkpoint to have; None takes any.

    Raises:
        CheckpointError: the file is missing, cut short, changed since it was written, a pickle, of
            another format, inconsistent, or not what was asked for.
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    if classes is not None and list(classes) != meta["classes"]:
        raise CheckpointError(
            f"{path}: is for other classes: expected {_listed(classes)}; "
            f"got {_listed(meta['classes'])}"
        )
    if input_size is not None and input_size != meta["input_size"]:
        raise CheckpointError(
            f"{path}: is for another input size: expected {input_size}, got {meta['input_size']}"
        )
    tensors = _read_tensors(path, meta, "")
    try:
        model: SingleShotDetector = build(meta["model"])
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {error}") from None
    _check_meta_fits(path, meta, model)
    _check_tensors_fit(path.with_name(meta["weights"]), tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.to(device).eval(), meta


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors given to `save_checkpoint` as `state`, on the CPU.

    Raises:
        CheckpointError: as `load_checkpoint`, and where the checkpoint has no such tensors.
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    if "state" not in meta:
        raise CheckpointError(f"{path}: holds no training state, so training cannot go on from it")
    return _read_tensors(path, meta, "state")


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The JSON that a JSON's, a weights file's or a folder's path stands for.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("best.json", "last.json"):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path}: the folder holds no checkpoint (best.json or last.json)")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".json":
        return path
    for candidate in sorted(path.parent.glob("*.json")):
        try:
            if read_meta(candidate)["weights"] == path.name:
                return candidate
        except CheckpointError:
            continue
    if not _is_safetensors(_read_start(path)):
        raise CheckpointError(_not_safetensors(path))
    raise CheckpointError(f"{path}: no JSON beside it names it as its weights")


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a checkpoint's JSON; the weights are not looked at.

    Raises:
        CheckpointError: it is missing, not JSON, of another format or version, or incomplete.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith(_PICKLE_STARTS):
        raise CheckpointError(f"{path}: is a pickle (a torch.save file), not JSON; refused unread")
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON, or cut short ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f'{path}: is not a checkpoint: expected "format": "{FORMAT}"')
    if meta.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: is a checkpoint of version {meta.get('version')!r}; "
            f"this program reads version {VERSION}"
        )
    _check_fields(path, meta)
    return meta


def check_classes(where: str, classes: Sequence[str], num_classes: int) -> None:
    """Check that class names are distinct strings, one fewer than the model's classes.

    Raises:
        ValueError: they are not.
    """
    if not classes or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"{where}: classes: expected one or more names, got {classes!r}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"{where}: classes: expected distinct names, got {_listed(classes)}")
    if len(classes) + 1 != num_classes:
        raise ValueError(
            f"{where}: classes: expected {num_classes - 1} names for a model of {num_classes} "
            f"classes with background, got {len(classes)}: {_listed(classes)}"
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
    config = model.config()
    facts = {name: config[name] for name in PRIOR_OPTIONS}
    return {"count": len(model.priors), **facts}


def _remove_leftovers(path: Path) -> None:
    """Remove this checkpoint's files that no JSON names, and what a killed save left half done."""
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


def _check_fields(path: Path, meta: dict[str, Any]) -> None:
    def need(field: str, sane: bool, expected: str) -> None:
        if not sane:
            raise CheckpointError(
                f"{path}: {field}: expected {expected}, got {_short(meta.get(field))}"
            )

    classes: Any = meta.get("classes")
    mean: Any = meta.get("mean")
    need("model", isinstance(meta.get("model"), dict), "the model's options")
    need("input_size", _is_count(meta.get("input_size")), "a whole number of pixels")
    need("priors", isinstance(meta.get("priors"), dict), "the facts of the priors")
    need("training", isinstance(meta.get("training"), dict), "the facts of the training")
    names = isinstance(classes, list) and all(isinstance(name, str) and name for name in classes)
    need("classes", names and len(classes) == len(set(classes)) > 0, "distinct names")
    numbers = isinstance(mean, list) and all(type(value) in (int, float) for value in mean)
    need("mean", numbers and len(mean) == 3, "three numbers")
    for prefix in ("", "state_") if "state" in meta else ("",):
        field = prefix.rstrip("_") or "weights"
        need(field, _is_plain_name(meta.get(field)), "the name of a .safetensors in the folder")
        need(f"{prefix}sha256", isinstance(meta.get(f"{prefix}sha256"), str), "a SHA-256")
        need(f"{prefix}bytes", _is_count(meta.get(f"{prefix}bytes")), "a size in bytes")


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_plain_name(name: object) -> bool:
    """Whether it names a file of the same folder on every system: no separator, drive or ".."."""
    return isinstance(name, str) and bool(re.fullmatch(r"[^/\\:\0]+\.safetensors", name))


def _read_tensors(path: Path, meta: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """The tensors of the file that the JSON names: its weights, or with "state" its state."""
    prefix = f"{kind}_" if kind else ""
    file = path.with_name(meta[kind or "weights"])
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file, though {path.name} names it") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    expected = meta[f"{prefix}bytes"]
    if not _is_safetensors(content[:9]):
        raise CheckpointError(_not_safetensors(file))
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


def _read_start(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(9)


def _is_safetensors(start: bytes) -> bool:
    # Eight bytes hold the length of the header, which is a JSON object.
    return len(start) >= 9 and start[8:9] == b"{"


def _not_safetensors(file: Path) -> str:
    start = _read_start(file)
    if start.startswith(_PICKLE_STARTS):
        return (
            f"{file}: is a pickle (a torch.save file), not safetensors; refused unread, "
            "because a pickle can run any code"
        )
    return f"{file}: is not a safetensors file, or cut short within its first bytes"


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


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{len(names)} ({shown}{', ...' if len(names) > 8 else ''})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
