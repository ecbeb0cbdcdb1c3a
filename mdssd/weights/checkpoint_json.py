"""The JSON of a checkpoint: finding it, reading it, and checking its fields."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT = "mdssd checkpoint"
VERSION = 1
# The first bytes of a file written by torch.save: a zip archive, or a bare pickle of protocol 2-5.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file and the reason."""


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the JSON of the checkpoint at `path`.

    Args:
        path: the JSON, its weights file, or a folder (best.json if it exists, else last.json).

    Raises:
        CheckpointError: there is no checkpoint.
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
    with open(path, "rb") as file:
        start = file.read(9)
    if not is_safetensors(start):
        raise CheckpointError(not_safetensors(path, start))
    raise CheckpointError(f"{path}: no JSON in the same folder names it as its weights")


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a checkpoint's JSON, without reading its weights.

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
        raise CheckpointError(f"{path}: is not JSON, or is cut short ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f'{path}: is not a checkpoint: expected "format": "{FORMAT}"')
    if meta.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: is a checkpoint of version {meta.get('version')!r}; "
            f"this program reads version {VERSION}"
        )
    _check_fields(path, meta)
    return meta


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins with these bytes, nine or more, can be a safetensors file."""
    # Eight bytes hold the length of the header, which is a JSON object.
    return len(start) >= 9 and start[8:9] == b"{"


def not_safetensors(file: Path, start: bytes) -> str:
    """An error message for a file with this start, which is not a safetensors file."""
    if start.startswith(_PICKLE_STARTS):
        return (
            f"{file}: is a pickle (a torch.save file), not safetensors; refused unread, "
            "because a pickle can run any code"
        )
    return f"{file}: is not a safetensors file, or is cut short within its first bytes"


def listed(names: Sequence[str]) -> str:
    """The number of names and the first eight, for an error message."""
    shown = ", ".join(names[:8])
    return f"{len(names)} ({shown}{', ...' if len(names) > 8 else ''})"


def _check_fields(path: Path, meta: dict[str, Any]) -> None:
    def need(field: str, sane: bool, expected: str) -> None:
        if not sane:
            raise CheckpointError(
                f"{path}: {field}: expected {expected}, got {_short(meta.get(field))}"
            )

    classes: Any = meta.get("classes")
    mean: Any = meta.get("mean")
    need("model", isinstance(meta.get("model"), dict), "the model's options")
    need("input_size", _is_positive(meta.get("input_size")), "a whole number of pixels")
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
        need(f"{prefix}bytes", _is_positive(meta.get(f"{prefix}bytes")), "a size in bytes")


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _is_plain_name(name: object) -> bool:
    """Whether it names a file of the same folder on every system: no separator, drive or ".."."""
    return isinstance(name, str) and bool(re.fullmatch(r"[^/\\:\0]+\.safetensors", name))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
