# SPDX-License-Identifier: Apache-2.0
"""Where the built-in profiles and suites are, and their names; cheap to import, so that `--help` can list them."""

from __future__ import annotations

from pathlib import Path

from lra.reading import visible


def config_folder(kind: str) -> Path:
    """Return the folder of built-in `profiles` or `suites`: inside the installed package, or beside it in a copy."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs" / kind
    return installed if installed.is_dir() else package.parent / "configs" / kind


def profile_names() -> list[str]:
    """List the built-in profiles."""
    return [file.stem for file in visible(config_folder("profiles"), "*.yaml")]


def suite_names() -> list[str]:
    """List the built-in suites."""
    return [file.stem for file in visible(config_folder("suites"), "*.yaml")]
