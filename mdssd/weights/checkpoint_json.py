"""The JSON of a checkpoint: finding it, reading it, and checking its fields."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdssd.system.files import open_regular, read_regular
from mdssd.system.kinds import VAGUE, kind_of_file

FORMAT = "mdssd checkpoint"
# Version 2 added "digest". Version 1 is read as well.
VERSION = 2
# The JSON of a run of thousands of evaluations and of 10,000 classes has less than 2 MB.
JSON_BYTES = 2**24
_DEPTH = 64
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
            if (path / name).exists():
                return path / name
        raise CheckpointError(f"{path}: the folder holds no checkpoint (best.json or last.json)")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".json":
        return path
    start = _start(path)
    for candidate in sorted(path.parent.glob("*.json")):
        try:
            if read_meta(candidate)["weights"] == path.name:
                return candidate
        except CheckpointError:
            continue
    if not is_safetensors(start):
        raise CheckpointError(not_safetensors(path, start))
    raise CheckpointError(f"{path}: no JSON in the same folder names it as its weights")


def _start(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: {cannot_be_read(error)}") from None


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a checkpoint's JSON, without reading its weights.

    Raises:
        CheckpointError: it is missing, not JSON, of another format or version, incomplete, or was
            changed after it was written, which a JSON of version 1 does not show.
    """
    path = Path(path)
    try:
        content = read_regular(path, JSON_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: {cannot_be_read(error)}") from None
    if content.startswith(_PICKLE_STARTS):
        raise CheckpointError(f"{path}: is a pickle (a torch.save file), not JSON; refused unread")
    try:
        meta = json.loads(
            content,
            object_pairs_hook=_without_repeats,
            parse_float=_finite,
            parse_constant=_finite,
        )
        check_depth(meta)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON, or is cut short ({error})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is not a checkpoint: {error}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f'{path}: is not a checkpoint: expected "format": "{FORMAT}"')
    version = meta.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise CheckpointError(
            f"{path}: is a checkpoint of version {shortened(version)}; "
            f"this program reads versions 1 to {VERSION}"
        )
    if version > 1 and meta.get("digest") != digest_of(meta):
        raise CheckpointError(
            f"{path}: was changed after it was written, by hand or by damage: its digest differs. "
            "To change an entry, such as the names of the classes, load the original and save it "
            "again (docs/export.md)"
        )
    _check_fields(path, meta)
    return meta


def digest_of(meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all entries of a JSON except "digest".

    It does not depend on the order of the entries or on spaces: it is that of the ASCII text
    without spaces in which the entries are sorted.

    Args:
        meta: the entries, as `json.loads` returns them.

    Example:
        >>> from mdssd.weights.checkpoint_json import digest_of
        >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1, "digest": "?"})
        True
    """
    entries = {name: value for name, value in meta.items() if name != "digest"}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_depth(value: object) -> None:
    """Raise a ValueError if lists and objects are inside one another more than 64 deep."""
    level = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"expected lists and objects at most {_DEPTH} deep")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the entry {shortened(repeated)} occurs twice")
    return entries


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {shortened(text)}")
    return value


def cannot_be_read(error: OSError) -> str:
    """Return the reason why a file cannot be read, for an error message after its name."""
    reason = error.strerror or str(error)
    return reason if reason.startswith(("is ", "has ")) else f"cannot be read ({reason})"


def is_class_name(name: object) -> bool:
    """Whether it is a text that can name a class: not empty, and possible to write in UTF-8."""
    return isinstance(name, str) and bool(name) and not re.search("[\ud800-\udfff]", name)


def is_mean(mean: object) -> bool:
    """Whether it can be the mean colour of pixels: three numbers from 0 to 255."""
    return (
        isinstance(mean, list | tuple)
        and len(mean) == 3
        and all(type(value) in (int, float) and 0 <= value <= 255 for value in mean)
    )


def is_quantized(meta: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds an int8 network as ONNX, not the weights of a model."""
    return str(meta["weights"]).endswith(".onnx")


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
    kind = kind_of_file(file)
    if kind in VAGUE:
        return f"{file}: is not a safetensors file, or is cut short within its first bytes"
    return (
        f"{file}: is {kind}, not a safetensors file (a checkpoint is a .json with a .safetensors "
        "beside it, or the folder of a training run)"
    )


def listed(names: Sequence[str]) -> str:
    """The number of names and the first eight, for an error message."""
    shown = ", ".join(names[:8])
    return f"{len(names)} ({shown}{', ...' if len(names) > 8 else ''})"


def _check_fields(path: Path, meta: dict[str, Any]) -> None:
    def need(field: str, sane: bool, expected: str) -> None:
        if not sane:
            raise CheckpointError(
                f"{path}: {field}: expected {expected}, got {shortened(meta.get(field))}"
            )

    classes: Any = meta.get("classes")
    need("model", isinstance(meta.get("model"), dict), "the model's options")
    size: Any = meta.get("input_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    need("input_size", all(map(_is_positive, sides)), "a whole number of pixels, or two")
    need("priors", isinstance(meta.get("priors"), dict), "the facts of the priors")
    need("training", isinstance(meta.get("training"), dict), "the facts of the training")
    names = isinstance(classes, list) and all(map(is_class_name, classes))
    need("classes", names and len(classes) == len(set(classes)) > 0, "distinct names")
    need("mean", is_mean(meta.get("mean")), "three numbers from 0 to 255")
    for prefix in ("", "state_") if "state" in meta else ("",):
        field = prefix.rstrip("_") or "weights"
        endings = ("safetensors",) if prefix else ("safetensors", "onnx")
        plain = _is_plain_name(meta.get(field), endings)
        need(field, plain, "the name of a .safetensors in the folder")
        need(f"{prefix}sha256", isinstance(meta.get(f"{prefix}sha256"), str), "a SHA-256")
        need(f"{prefix}bytes", _is_positive(meta.get(f"{prefix}bytes")), "a size in bytes")


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _is_plain_name(name: object, endings: Sequence[str]) -> bool:
    """Whether it names a file of the same folder on every system: no separator, drive or ".."."""
    pattern = rf"[^/\\:\0]+\.({'|'.join(endings)})"
    return isinstance(name, str) and bool(re.fullmatch(pattern, name))


def shortened(value: object) -> str:
    """Return a value for an error message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
