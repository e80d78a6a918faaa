# SPDX-License-Identifier: Apache-2.0
"""A new Python process that imports what this one would: the code of a run does not depend on the working folder."""

from __future__ import annotations

import os
import sys


def command(module: str, *options: str) -> list[str]:
    """Return the words that run a module, with options of Python before it.

    `-P` keeps the working folder, which `-m` would put first, off the path.
    """
    return [sys.executable, "-P", *options, "-m", module]


def environment() -> dict[str, str]:
    """Return the variables of this process, with the places that it imports from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}  # noqa: PTH109
