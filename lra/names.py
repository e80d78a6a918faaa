# SPDX-License-Identifier: Apache-2.0
"""Names that a user types: folded and, if mistyped, suggested. Names of fields that changed between two schemas."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def fold(name: str) -> str:
    """Return the registered form of a name: lower case, with `_` for `-`."""
    return name.strip().lower().replace("-", "_")


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
