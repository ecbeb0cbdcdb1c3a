"""Read the tensors of safetensors, PyTorch and Caffe files from others, without running code."""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

# The first bytes of a Caffe model: its name (field 1) or a layer (field 100; 2 in old models).
_CAFFE_STARTS = (b"\x0a", b"\xa2\x06", b"\x12")
# The limit of protobuf; a larger file would fill the memory before protobuf refuses it.
_CAFFE_BYTES = 2**31
# The only names that a pickle of tensors needs. PyTorch allows more, such as bytearray(10**12),
# which would allocate as much memory as the pickle asks for, whatever the size of the file.
_PICKLED = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
    r"|torch\.(cuda\.)?\w+Storage|torch\.(Size|[a-z]\w*)|(__builtin__|builtins)\.(set|complex)"
    r"|torch\._utils\._rebuild_(tensor|parameter|sparse|meta|qtensor)\w*"
    r"|torch\._tensor\._rebuild_from_type_v2"
)
# The part of caffe.proto that contains weights: message -> (field, number, type, repeated). Packed
# floats have the same encoding as bytes, so blobs are declared as bytes and need no unpacking.
_CAFFE_SCHEMA = {
    "Shape": [("dim", 1, "INT64", True)],
    "Blob": [
        ("num", 1, "INT64", False),
        ("channels", 2, "INT64", False),
        ("height", 3, "INT64", False),
        ("width", 4, "INT64", False),
        ("data", 5, "BYTES", True),
        ("shape", 7, "Shape", False),
    ],
    "Layer": [("name", 1, "STRING", False), ("blobs", 7, "Blob", True)],
    "OldLayer": [("name", 4, "STRING", False), ("blobs", 6, "Blob", True)],
    "Net": [("layers", 2, "OldLayer", True), ("layer", 100, "Layer", True)],
}


def read_tensors(function: str, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, a PyTorch file or a Caffe model, on the CPU.

    The content decides the format, not the name, and no code in a file is executed.

    Args:
        function: the caller's name, for error messages.
        source: the file. A PyTorch file must contain a dictionary of tensors, or such a dictionary
            under "model" or "state_dict"; if all names begin with "module.", the prefix is
            removed. A Caffe model needs the package protobuf.

    Returns:
        The tensors by name, which may be views of the file. A Caffe layer has the names
        `<layer>.weight` and `<layer>.bias`.

    Raises:
        OSError: the file cannot be opened.
        ImportError: the file is a Caffe model and protobuf is not installed.
        ValueError: the file cannot be used; the message begins with `function`.
    """
    path = Path(source)
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":
            tensors = safetensors.torch.load_file(path)
        elif head[:2] in (b"PK", b"\x80\x02"):
            tensors = _state_dict(_read_torch(path, head.startswith(b"PK")))
        elif head.startswith(_CAFFE_STARTS):
            if path.stat().st_size >= _CAFFE_BYTES:
                raise ValueError(f"a Caffe model has less than {_CAFFE_BYTES} bytes")
            tensors = _read_caffe(path.read_bytes())
        else:
            raise ValueError("neither a safetensors nor a PyTorch file nor a Caffe model")
        for name, tensor in tensors.items():
            _check_plain(name, tensor)
        return tensors
    except (ImportError, OSError):
        raise
    except Exception as error:  # torch.load raises any type of error for a damaged pickle
        raise ValueError(f"{function}: cannot read {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    called = re.search(r"GLOBAL (\S+)", str(error))
    if called and isinstance(error, pickle.UnpicklingError):
        return f"its pickle would call {called[1]}, which makes no tensor; nothing was run"
    return str(error).partition("\n")[0] or "it is cut short"


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


# --- PyTorch -------------------------------------------------------------------------------------


def _read_torch(path: Path, zipped: bool) -> Any:
    if not zipped:
        with path.open("rb") as file:  # not the path: torch.load also looks at the name
            _check_pickles(file, 5)  # the magic number, version, machine, content and keys
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename!r} is compressed, which torch.save never does")
            if entry.filename.lower().endswith(".pkl"):
                try:
                    with archive.open(entry) as file:
                        _check_pickles(file, 1)
                except OSError:
                    raise ValueError(f"{entry.filename!r} is not where it should be") from None
    # With mmap no storage can extend beyond the end of the file, whatever size the pickle claims.
    if path.suffix != ".safetensors":
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "weights.pth"
        link.symlink_to(path.absolute())
        return torch.load(str(link), map_location="cpu", weights_only=True, mmap=True)


def _check_pickles(file: IO[bytes], count: int) -> None:
    for _ in range(count):
        for opcode, argument, _ in pickletools.genops(file):
            name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else None
            if name and not _PICKLED.fullmatch(name):
                raise pickle.UnpicklingError(f"GLOBAL {name}")


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


# --- Caffe ---------------------------------------------------------------------------------------


def _read_caffe(content: bytes) -> dict[str, Tensor]:
    parse = _caffe_parser()
    try:
        net = parse(content)
    except ValueError:
        raise ValueError(_first_fault(content, parse)) from None
    tensors: dict[str, Tensor] = {}
    for layer in (*net.layer, *net.layers):
        for part, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            name = f"{layer.name}.{part}"
            if name in tensors:
                raise ValueError(f"{name!r} occurs twice")
            tensors[name] = _blob(name, blob)
    if not tensors:
        raise ValueError(f"a Caffe model without weights ({len(content)} bytes)")
    return tensors


def _blob(name: str, blob: Any) -> Tensor:
    shape = list(blob.shape.dim)
    if not blob.HasField("shape"):
        shape = [blob.num, blob.channels, blob.height, blob.width]
        while len(shape) > 1 and shape[0] == 1:  # old models store a vector as 1 x 1 x 1 x length
            del shape[0]
    if len(shape) > 4:
        raise ValueError(f"{name!r}: expected at most 4 dimensions, got {len(shape)}")
    data = b"".join(blob.data)
    if any(size < 0 for size in shape) or 4 * math.prod(shape) != len(data):
        raise ValueError(
            f"{name!r}: its shape {shape} needs {4 * math.prod(shape)} bytes of 32-bit numbers, "
            f"the file has {len(data)}"
        )
    return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32)).reshape(shape)


def _caffe_parser() -> Callable[[bytes], Any]:
    """Make a function that parses bytes as the "Net" of `_CAFFE_SCHEMA`, or raises ValueError."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError:
        raise ImportError(
            "read_tensors: a Caffe model needs a package: pip install 'protobuf>=4.22'"
        ) from None
    file = descriptor_pb2.FileDescriptorProto(name="mdssd/caffe.proto", package="mdssd.caffe")
    for title, fields in _CAFFE_SCHEMA.items():
        described = file.message_type.add(name=title)
        for name, number, kind, repeated in fields:
            field = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in _CAFFE_SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".mdssd.caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("mdssd.caffe.Net"))

    def parse(content: bytes) -> Any:
        try:
            return net.FromString(content)
        except message.DecodeError as error:
            raise ValueError(str(error)) from None

    return parse


def _first_fault(content: bytes, parse: Callable[[bytes], object]) -> str:
    """Find the first fault in a Caffe model; protobuf refuses one without naming the place."""
    start = 0
    while start < len(content):
        tag, position = _varint(content, start)
        kind = tag & 7
        if kind not in (0, 1, 2, 5):
            break
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind in (0, 2):
            value, position = _varint(content, position)
            size = value if kind == 2 else 0
        end = position + size
        if end > len(content):
            return (
                f"a Caffe model cut short: the field at byte {start} ends at byte {end}, "
                f"the file at byte {len(content)}"
            )
        try:
            parse(content[start:end])
        except ValueError:
            break
        start = end
    return f"not a Caffe model, or a damaged one: byte {start} does not begin a valid field"


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """The number that begins at `position`, and the position after it."""
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            break
    return value, position
