# SPDX-License-Identifier: Apache-2.0
"""The python version of CIFAR-10: pickles, read without trusting them.

A pickle is a program. Its instructions are looked through first: only those that the released files are made of are let
pass, and few enough of them that nothing deep or large can be built. Then they run with stand-ins for the three names
that the files use, so nothing of NumPy, or of anything else, is called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lra.errors import DataError

COLUMNS = 3 * 32 * 32

# fmt: off
_OPCODES = frozenset((
    "PROTO", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BININT", "BININT1",
    "BININT2", "BINSTRING", "SHORT_BINSTRING", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "REDUCE", "BUILD",
))
# fmt: on
_MAX_OPCODES = 200_000
"""A released file has 20,000."""
_MAX_CONTAINERS = 32
_ERRORS = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,
)
"""What running a malformed pickle of the admitted instructions raises."""


def read_pickle(
    data: bytes, place: str, batch: bytes | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the images (count, 3072) and the labels (count,) of one file.

    Args:
        data: Its content.
        place: Where it is from, for an error.
        batch: What the file has to call itself, if it says what it is; None takes any.

    Raises:
        DataError: The file is not a pickle of such images, is another batch, or holds an instruction that those do not
            need.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strings with odd escapes make the standard library warn; they are refused
        _check_opcodes(data, place)
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _ERRORS as error:
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise DataError(f"{place}: not a CIFAR-10 pickle: {reason}") from error
    if type(content) is not dict:
        raise DataError(f"{place}: not a CIFAR-10 pickle: no dictionary")
    label = content.get(b"batch_label")
    if batch is not None and isinstance(label, bytes) and label != batch:
        raise DataError(f"{place}: says that it is {label.decode('latin-1')!r}, not {batch.decode()!r}; renamed?")
    images = _images(content.get(b"data"), place)
    labels = content.get(b"labels")
    if type(labels) is not list or len(labels) != len(images) or not all(type(label) is int for label in labels):
        raise DataError(f"{place}: not a CIFAR-10 pickle: labels are not {len(images)} integers")
    if not all(0 <= label <= 9 for label in labels):
        raise DataError(f"{place}: a label is outside 0 to 9")
    return images, np.array(labels, dtype=np.uint8)


class _Array:
    """Stands for `numpy.ndarray`, and keeps what would become its content."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _DType:
    """Stands for `numpy.dtype`, and keeps its name."""

    def __init__(self, name: object, align: object, copy: object) -> None:  # noqa: ARG002 - as NumPy pickles it
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Take byte order and the like, which one byte has not."""


class _Reconstruct:
    """Stands for the function that makes an empty array."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> _Array:  # noqa: ARG002
        return _Array()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _Reconstruct()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _DType
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def _check_opcodes(data: bytes, place: str) -> None:
    containers = 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in _OPCODES:
                raise DataError(f"{place}: not a CIFAR-10 pickle: instruction {opcode.name}")
            containers += "TUPLE" in opcode.name or opcode.name.startswith("EMPTY")
            if count > _MAX_OPCODES or containers > _MAX_CONTAINERS:
                raise DataError(f"{place}: not a CIFAR-10 pickle: too many instructions")
            if opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_OPCODES:
                raise DataError(f"{place}: not a CIFAR-10 pickle: memo {argument}")
    except ValueError as error:
        raise DataError(f"{place}: not a pickle: {(str(error).splitlines() or [''])[0][:120]}") from error


def _images(array: object, place: str) -> npt.NDArray[np.uint8]:
    match array:
        case _Array(state=(int(), (int(rows), int(columns)), _DType(name=b"u1"), False, bytes(raw))):
            if rows > 0 and columns == COLUMNS and len(raw) == rows * columns:
                return np.frombuffer(raw, dtype=np.uint8).reshape(rows, columns)
    raise DataError(f"{place}: not a CIFAR-10 pickle: the images are not an array of bytes (images, {COLUMNS})")
