"""Names that a user types: one folding of case and hyphens, and suggestions for mistyped ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


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
