# SPDX-License-Identifier: Apache-2.0
"""An error of a variant in one line: where in its author's file, what, and what usually helps."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import torch

_HERE = Path(__file__).resolve().parent
_PROJECT = tuple(_HERE.parent / name for name in ("attention_zoo", "contextpool", "lra", "runners", "reports"))
_LIBRARIES = tuple(
    Path(folder).resolve()
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(torch.__file__).parent))
)
_LONGEST = 300

_HINTS = (
    (
        r"before Module.__init__|has no attribute '(config|dims|_parameters|_modules|_buffers|training)'",
        "call super().__init__(config, dims) first in __init__",
    ),
    (r"SequenceMixer.__init__\(\) missing", "write super().__init__(config, dims)"),
    (r"abstract (class|method)", "define forward(self, x, mask=None)"),
    (
        r"register_variant\(\) missing",
        "register_variant(NAME, traits=Traits(...), paper=...)",
    ),
    (r"Traits.__init__\(\) missing", "Traits(memory='linear', complexity='O(n)', ...): see docs/add-a-variant.md"),
    (
        r"__init__\(\) missing .* required keyword-only argument|has no default",
        "give each option a default: option(DEFAULT, 'help')",
    ),
    (
        r"same dtype|scalar type|expected .*(Float|Double|Half|BFloat16)|Double|must match, got .*dtype|bias type",
        "make new tensors with x.new_zeros(...) or dtype=x.dtype, and keep constants as buffers: register_buffer",
    ),
    (
        r"same device|not compiled with CUDA|No CUDA GPUs|NVIDIA driver|CUDA is not available|on device meta",
        "make new tensors with x.new_zeros(...) or device=x.device, and keep constants as buffers: register_buffer",
    ),
    (
        r"in-?place|modified by an inplace|leaf Variable",
        "do not change x or the mask in place: write x = x + y, or x.clone() first",
    ),
    (
        r"only supports boolean masks|mask.*(bool|Bool)|bool tensor is not supported",
        "the mask is bool, True = real token: use ~mask",
    ),
    (r"NoneType", "the mask may be None: then every token is real"),
    (r"view size is not compatible|\.view\(", "use reshape instead of view"),
    (r"requires_grad|does not require grad|grad_fn", "do not detach, and do not compute outside of torch"),
    (r"numpy", "compute with torch only, so that gradients and devices work"),
    (
        r"size of tensor|cannot be multiplied|must match the size|is invalid for input|shape '|mismatch",
        "x is (batch, length, dim) with any length up to dims.max_length, the mask (batch, length); "
        "scores take mask[:, None, None, :]",
    ),
    (r"out of range|out of bounds", "any length from 1 to dims.max_length must work"),
    (r"No module named|cannot import name", "install it, or correct the import"),
    (r"maximum recursion depth", "something calls itself without an end"),
)


def fault_line(error: BaseException, *, advice: bool = True) -> str:
    """Return one line about an error that a variant raised: file and line of its author's code, error, advice.

    Args:
        error: The error.
        advice: Whether to add what usually helps an author of a mixer.
    """
    place, text = _place(error), " ".join(str(error).split())[:_LONGEST]
    kind = type(error).__name__
    hint = next((hint for pattern, hint in _HINTS if advice and re.search(pattern, f"{kind}: {text}")), "")
    parts = [place, f"{kind}: {text}" if text else kind]
    return ": ".join(filter(None, parts)) + (f" ({hint})" if hint else "")


def is_in_variant(error: BaseException) -> bool:
    """Say whether an error was raised in the code of a variant, or below it."""
    return bool(_place(error))


def _place(error: BaseException) -> str:
    """Return `file:line: code` of the innermost line that an author of a variant wrote; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}: `{(error.text or '').strip()}`"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_in(frame.filename, _LIBRARIES)]
    first = next((i for i, frame in enumerate(frames) if _is_in(frame.filename, _PROJECT)), 0)
    theirs = [frame for frame in frames[first:] if not _is_in(frame.filename, _PROJECT)]
    if theirs:  # the author's code begins with the first of them; libraries that it calls stand in other folders
        begin = Path(theirs[0].filename)
        home = (begin,) if begin.parent.name == "site-packages" else (begin, begin.parent)
        theirs = [frame for frame in theirs if Path(frame.filename) in home or home[-1] in Path(frame.filename).parents]
    ours = [frame for frame in frames if _is_in(frame.filename, (_HERE / "variants", _HERE.parent / "contextpool"))]
    for frame in (theirs or ours)[-1:]:
        return f"{_shown(frame.filename)}:{frame.lineno}: `{frame.line}`"
    return ""


def _is_in(file: str, folders: tuple[Path, ...]) -> bool:
    path = Path(file)
    if not path.is_absolute():  # `<frozen importlib._bootstrap>`, `<string>`
        return True
    return any(folder in path.resolve().parents for folder in folders)


def _shown(file: str) -> str:
    """Return a path as seen from the working folder, if it is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
