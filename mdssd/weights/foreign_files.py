"""Read the tensors of safetensors, PyTorch and Caffe files from others, without running code."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor

from mdssd.system.files import open_regular, read_regular
from mdssd.system.kinds import kind_of_file
from mdssd.weights.caffe_files import read_caffe
from mdssd.weights.checkpoint_tensors import HEADER_BYTES
from mdssd.weights.pickles import BoundedFile, PickleCheck

# The first bytes of a Caffe model: its name (field 1) or a layer (field 100; 2 in old models).
_CAFFE_STARTS = (b"\x0a", b"\xa2\x06", b"\x12")
# The largest that is known, VGG16 with its classifier, has 553 MB.
_CAFFE_BYTES = 600_000_000


def read_tensors(function: str, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, a PyTorch file or a Caffe model, on the CPU.

    The content decides the format, not the name, and no code in a file is executed.

    Args:
        function: the caller's name, for error messages.
        source: the file. A PyTorch file must contain a dictionary of tensors, or such a dictionary
            under "model" or "state_dict"; if all names begin with "module.", the prefix is
            removed.

    Returns:
        The tensors by name, which may be views of the file. A Caffe layer has the names
        `<layer>.weight` and `<layer>.bias`.

    Raises:
        OSError: the file cannot be opened or is not a regular file.
        ValueError: the file cannot be used; the message begins with `function`.
    """
    path = Path(source)
    with open_regular(path) as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":
            if (size := int.from_bytes(head[:8], "little")) > HEADER_BYTES:
                raise ValueError(f"its header has {size} bytes, expected at most {HEADER_BYTES}")
            tensors = safetensors.torch.load_file(path)
        elif head[:2] in (b"PK", b"\x80\x02"):
            tensors = _state_dict(_read_torch(path, head.startswith(b"PK")))
        elif head.startswith(_CAFFE_STARTS):
            tensors = read_caffe(read_regular(path, _CAFFE_BYTES))
        else:
            raise ValueError(
                f"it is {kind_of_file(path)}, expected a safetensors file, a PyTorch file or a "
                "Caffe model"
            )
        for name, tensor in tensors.items():
            _check_plain(name, tensor)
        return tensors
    except OSError:
        raise
    except Exception as error:  # torch.load raises any type of error for a damaged pickle
        raise ValueError(f"{function}: cannot read {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    called = re.search(r"GLOBAL (\S+)", str(error))
    if called and isinstance(error, pickle.UnpicklingError):
        return f"its pickle would call {called[1]}, which makes no tensor; nothing was run"
    line = str(error).partition("\n")[0] or "it is cut short"
    return line if len(line) <= 300 else f"{line[:300]} ..."


def _check_plain(name: str, tensor: Tensor) -> None:
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"
    if not plain or tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{name!r}: expected an ordinary tensor, got {type(tensor).__name__}")
    # With strides of 0, a few stored numbers can claim to be a tensor of any size.
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise ValueError(
            f"{name!r}: its shape {list(tensor.shape)} needs more than the {stored} bytes stored"
        )


def _read_torch(path: Path, zipped: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an unusual version of the pickle
        return _read_checked(path, zipped, PickleCheck())


def _read_checked(path: Path, zipped: bool, check: PickleCheck) -> Any:
    if not zipped:
        with open_regular(path) as file:  # not the path: torch.load also looks at the name
            bounded = BoundedFile(file)
            for _ in range(5):  # the magic number, version, machine, content and keys
                check(bounded)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    with open_regular(path) as file:
        _check_archive(file, check)
    # With mmap no storage can extend beyond the end of the file, whatever size the pickle claims.
    if path.suffix != ".safetensors":
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "weights.pth"
        link.symlink_to(path.absolute())
        return torch.load(str(link), map_location="cpu", weights_only=True, mmap=True)


def _check_archive(file: BinaryIO, check: PickleCheck) -> None:
    """Check the members of a zip archive: nothing is compressed, and the pickles are small."""
    bounded = BoundedFile(file)
    with zipfile.ZipFile(cast(BinaryIO, bounded)) as archive:
        entries = archive.infolist()
        size, stored = os.fstat(file.fileno()).st_size, sum(e.file_size for e in entries)
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename!r} is compressed, which torch.save never does")
        if stored > size:
            raise ValueError(f"its members have {stored} bytes, the file has {size}")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                try:
                    with archive.open(entry) as member:
                        check(BoundedFile(cast(BinaryIO, member)))
                except OSError:
                    raise ValueError(f"{entry.filename!r} is not where it should be") from None


def _state_dict(content: Any) -> dict[str, Tensor]:
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary of tensors, got {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
