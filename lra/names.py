# SPDX-License-Identifier: Apache-2.0
"""What a user types: names, folded and, if mistyped, suggested; and seeds. Names of fields that changed."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lra.errors import UsageError

MAX_SEEDS = 1_000
"""Of one command."""


def fold(name: str) -> str:
    """Return the registered form of a name: lower case, with `_` for `-`."""
    return name.strip().lower().replace("-", "_")


_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Letters and marks by their category that print nothing."""


def legible(title: str) -> str:
    """Return a title without what cannot be seen, so that titles that print alike are equal.

    Control characters and invisible letters are left out, and each run of spaces is one space.
    """
    seen = [" " if letter.isspace() else letter for letter in _BLANK.sub("", title)]
    return " ".join("".join(letter for letter in seen if unicodedata.category(letter)[0] != "C").split())


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of an error message about an unknown name: the names close to it.

    Args:
        name: The mistyped name.
        known: All names that there are.
        otherwise: What to say if no name is close; empty lists all known ones.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return otherwise or f"known: {', '.join(known) or 'none'}"


def suggest_path(path: Path, pattern: str = "*") -> str:
    """Return `; did you mean '...'?` with the path beside a missing one whose name is closest; empty if none is close.

    Args:
        path: The path that does not exist.
        pattern: Glob that a suggestion must match.
    """
    close = difflib.get_close_matches(path.name, [sibling.name for sibling in path.parent.glob(pattern)], n=1)
    return f"; did you mean {str(path.with_name(close[0]))!r}?" if close else ""


def rename_fields(body: Mapping[str, Any], new_names: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of an older schema under their new names.

    Args:
        body: Fields by name. All old names must be there, and none of the new ones.
        new_names: New name of each old one.

    Raises:
        ValueError: A field has its new name already, or is missing.
    """
    if wrong := [new for old, new in new_names.items() if old not in body or new in body]:
        raise ValueError(f"an older schema, but not with the old names of {', '.join(wrong)}")
    return {new_names.get(name, name): value for name, value in body.items()}


def parse_natural(text: str) -> int | None:
    """Parse a number of up to 18 digits, which is below 2^63; None if the text is anything else."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def parse_seeds(text: str, origin: str = "--seeds", what: str = "seed") -> list[int]:
    """Parse a list of seeds, or other whole numbers, such as `3`, `0-4` or `0,2,5-7`.

    Args:
        text: What the user wrote.
        origin: Where, for the error message.
        what: What a number is, for the error message.

    Raises:
        UsageError: An item is neither a number nor an increasing range, or there are more than `MAX_SEEDS`.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        start, stop = parse_natural(first), parse_natural(last if dash else first)
        if start is None or stop is None:
            raise UsageError(f"{origin} {text[:80]}: {piece.strip()[:80]!r} is not a {what}; write 3, 0-4 or 0,2,5")
        if stop < start:
            raise UsageError(f"{origin} {text[:80]}: {piece.strip()!r} runs backwards; write {stop}-{start}")
        if len(seeds) + stop - start >= MAX_SEEDS:
            raise UsageError(f"{origin} {text[:80]}: more than {MAX_SEEDS:,} {what}s")
        seeds.extend(range(start, stop + 1))
    return list(dict.fromkeys(seeds))
