# SPDX-License-Identifier: Apache-2.0
"""Rows of the pickles that the code of Nystromformer makes, one at a time and without trusting them.

Such a file is a list of dictionaries: `input_ids_0`, perhaps `input_ids_1`, each a NumPy array of whole numbers, and
`label`. A pickle is a program. Here only the instructions that these files are made of are followed, by this module
itself: nothing of NumPy or of anything else is called, and of what is read only short things are remembered.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lra.errors import DataError
from lra.reading import open_regular, reading

READ_LIMIT = 1 << 20
"""Bytes of one piece, such as an array."""
MEMO_LIMIT = 10_000
"""Names and the like that are remembered; a file has some twenty."""
STACK_LIMIT = 100_000
"""Values that wait to be used; Python's own pickles have some thousands."""
_TYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_FORGOTTEN = object()
"""Stands for what was too long, or too common, to be remembered."""

Ids = npt.NDArray[np.integer]


class _Array:
    """An array that gets its content later."""

    ids: Ids | None = None


class _DType:
    """A type of whole numbers."""

    def __init__(self, name: object) -> None:
        if name not in _TYPES:
            raise DataError(f"an array of {str(name)[:20]!r}")
        self.name, self.order = str(name), "<"

    def decode(self, raw: object) -> Ids:
        if not isinstance(raw, bytes) or len(raw) % int(self.name[1:]):
            raise DataError("an array without its bytes")
        return np.frombuffer(raw, dtype=f"{self.order}{self.name}")


class _Limited:
    """A file that refuses to read much at once, whatever an instruction asks for."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle

    def read(self, size: int) -> bytes:
        if size > READ_LIMIT:
            raise DataError(f"a piece of {size:,} bytes")
        return self.handle.read(size)

    def readline(self) -> bytes:
        return self.handle.readline(1_000)


def read_pickled_rows(file: Path) -> Iterator[tuple[int, list[Ids]]]:
    """Yield (label, arrays) of each row.

    Raises:
        DataError: With the number of the row: the file is damaged, or is not such a list.
    """
    count = 0
    with reading(file), open_regular(file) as handle:
        try:
            for row in _Machine().rows(handle):
                yield _parse(row)
                count += 1
        except (DataError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
            what = str(error) if isinstance(error, DataError) else "damaged"
            place = f"{file}: row {count} or one after it"  # Python writes up to 1,000 rows at a time
            raise DataError(f"{place}: not as the pickles of Nystromformer: {what}") from error


def _parse(row: object) -> tuple[int, list[Ids]]:
    """Take a row apart."""
    if not isinstance(row, dict) or set(row) - {"input_ids_0", "input_ids_1", "label"}:
        raise DataError("no dictionary of input_ids_0, perhaps input_ids_1, and label")
    label = row.get("label")
    if type(label) is not int:
        raise DataError("the label is no whole number")
    arrays = [row[key] for key in ("input_ids_0", "input_ids_1") if key in row]
    if not arrays or not all(isinstance(array, _Array) and array.ids is not None for array in arrays):
        raise DataError("input_ids are no arrays")
    return label, [array.ids for array in arrays]


class _Machine:
    """Follows the instructions, and hands out the items of the outer list as they are appended."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        """Lengths of the stack where marks are."""
        self.memo: dict[int, Any] = {}
        self.next = 0

    def rows(self, handle: IO[bytes]) -> Iterator[object]:
        for opcode, argument, _ in pickletools.genops(_Limited(handle)):  # type: ignore[arg-type]  # has what it uses
            name = opcode.name
            if name in ("APPEND", "APPENDS"):
                items = self.marked() if name == "APPENDS" else [self.stack.pop()]
                if len(self.stack) != 1 or not isinstance(self.stack[0], list):
                    raise DataError("a list inside the list")
                yield from items
            elif name == "STOP":
                if len(self.stack) != 1 or not isinstance(self.stack[0], list):
                    raise DataError("no list")
                if handle.read(1):
                    raise DataError("more behind the list")
                return
            else:
                self.step(name, argument)
            if len(self.stack) + len(self.marks) > STACK_LIMIT or len(self.memo) > MEMO_LIMIT:
                raise DataError("too much that waits or is remembered")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                self.remember(self.next if name == "MEMOIZE" else argument)
            case "BINGET" | "LONG_BINGET":
                value = self.memo.get(argument, _FORGOTTEN)
                if value is _FORGOTTEN:
                    raise DataError("it refers to what was not remembered")
                stack.append(value)
            case "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack[-2:] = [_Global(f"{stack[-2]}.{stack[-1]}")]
            case "REDUCE":
                stack[-2:] = [stack[-2].call(stack[-1])]
            case "BUILD":
                _build(stack[-2], stack.pop())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                pairs = self.marked()
                stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
            case _:
                raise DataError(f"instruction {name}")

    def marked(self) -> list[Any]:
        """Take what is above the last mark from the stack."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def remember(self, number: int) -> None:
        """Keep names, types and functions; arrays, their bytes and shapes are used once."""
        value = self.stack[-1]
        self.next += 1
        if isinstance(value, str | _DType | _Global) or (isinstance(value, bytes) and len(value) <= 1):
            self.memo[number] = value


class _Global:
    """One of the functions and classes of NumPy that the files name."""

    def __init__(self, name: str) -> None:
        self.name = name.replace("numpy._core.", "numpy.core.")

    def call(self, arguments: Any) -> object:
        """Return what the function would return."""
        match self.name, arguments:
            case "numpy.core.multiarray._reconstruct", _:
                return _Array()
            case "numpy.dtype", (name, False, True):
                return _DType(name)
            case "numpy.core.multiarray.scalar", (_DType() as dtype, bytes(raw)):
                return int(dtype.decode(raw)[0])
        raise DataError(f"{self.name[:60]} is called")


def _build(value: object, state: Any) -> None:
    """Give an array or a type its content."""
    match value, state:
        case _Array(), (1, (int(size),), _DType() as dtype, False, raw):
            value.ids = dtype.decode(raw)
            if len(value.ids) != size:
                raise DataError("an array without its bytes")
        case _DType(), (_, "<" | "|" | ">" as order, *_):
            value.order = order
        case _:
            raise DataError("an array of another form")
