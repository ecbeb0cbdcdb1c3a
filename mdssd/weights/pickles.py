"""Look at a pickle before it is loaded: what it would call, and how much it would build."""

from __future__ import annotations

import pickle
import pickletools
import re
from typing import BinaryIO, cast

# The only names that a pickle of tensors needs. PyTorch allows more, such as bytearray(10**12),
# which would allocate as much memory as the pickle asks for, whatever the size of the file.
_PICKLED = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
    r"|torch\.(cuda\.)?\w+Storage|torch\.(Size|[a-z]\w*)|(__builtin__|builtins)\.(set|complex)"
    r"|torch\._utils\._rebuild_(tensor|parameter|sparse|meta|qtensor)\w*"
    r"|torch\._tensor\._rebuild_from_type_v2"
)
# A tensor needs 30 opcodes, and the state of its optimiser as many again.
_OPCODES = 500_000
_VALUES = 5_000_000
_READ = 2**22
_READ_IN_ALL = 2**26

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
# These add to the value below their arguments, which stays where it is.
_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class BoundedFile:
    """A file of which at most 4 MB are read at once, and 64 MB in all.

    For what is small in every sound file: pickles, and the list of members of a zip archive.

    Raises:
        ValueError: more is read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _READ_IN_ALL
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(_READ + 1 if size < 0 else min(size, _READ + 1))
        if len(data) > _READ:
            raise ValueError(f"one of its pickles or lists has more than {_READ} bytes")
        return self._count(data)

    def readline(self) -> bytes:
        return self._count(self._file.readline(_READ))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"its pickles and lists have more than {_READ_IN_ALL} bytes")
        return data


class PickleCheck:
    """Follows what the pickles of one file would do, without doing it.

    It refuses a call of anything that makes no tensor, and pickles that would take long: because
    they have many opcodes, or because a few of them build a large value out of others again and
    again. The size of a value counts what it contains as often as it is contained.

    Example:
        >>> import io, pickle
        >>> from mdssd.weights.pickles import BoundedFile, PickleCheck
        >>> PickleCheck()(BoundedFile(io.BytesIO(pickle.dumps(print, 2))))
        Traceback (most recent call last):
            ...
        _pickle.UnpicklingError: GLOBAL __builtin__.print
    """

    def __init__(self) -> None:
        self._opcodes = self._values = 0

    def __call__(self, file: BoundedFile) -> None:
        """Check the pickle that begins at the file's position, and move to its end.

        Raises:
            pickle.UnpicklingError: "GLOBAL" and what the pickle would call.
            ValueError: it is damaged or builds too much.
        """
        stack: list[list[int]] = []  # the size of each value, in a list because values grow
        marks: list[int] = []
        memo: dict[object, list[int]] = {}
        for opcode, argument, _ in pickletools.genops(cast(BinaryIO, file)):
            name = opcode.name
            if name == "GLOBAL":
                called = str(argument).replace(" ", ".")
                if not _PICKLED.fullmatch(called):
                    raise pickle.UnpicklingError(f"GLOBAL {called}")
            try:
                if name == "MARK":
                    marks.append(len(stack))
                    size = 0
                elif name in _PUTS:
                    memo[len(memo) if argument is None else argument] = stack[-1]
                    size = 0
                elif name in _GETS:
                    stack.append(memo[argument])
                    size = 0
                else:
                    size = self._apply(opcode, stack, marks)
            except (IndexError, KeyError):
                raise ValueError("its pickle is damaged") from None
            self._opcodes += 1
            self._values += size
            if self._opcodes > _OPCODES:
                raise ValueError(f"its pickles have more than {_OPCODES} opcodes")
            if self._values > _VALUES:
                raise ValueError(f"its pickles build more than {_VALUES} values")

    @staticmethod
    def _apply(opcode: pickletools.OpcodeInfo, stack: list[list[int]], marks: list[int]) -> int:
        """Change the stack as the opcode does; return the size of what it builds or adds."""
        before, grows = opcode.stack_before, opcode.name in _GROWING
        if pickletools.markobject in before:
            start = marks.pop()
        else:
            start = len(stack) - len(before) + grows
        if start < grows:
            raise IndexError
        size = sum(value[0] for value in stack[start:])
        del stack[start:]
        if grows:
            stack[-1][0] += size
        else:
            stack.extend([1 + size] for _ in opcode.stack_after)
        return size
