# SPDX-License-Identifier: Apache-2.0
"""A new Python process that imports what this one would: the code of a run does not depend on the working folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMANDS = ("lra-run", "lra-sweep")
"""Scripts whose processes are started anew by `fix_order_of_sets`."""


def command(module: str, *options: str) -> list[str]:
    """Return the words that run a module, with options of Python before it.

    `-P` keeps the working folder, which `-m` would put first, off the path.
    """
    return [sys.executable, "-P", *options, "-m", module]


def fix_order_of_sets() -> None:
    """Start this process anew with a fixed order of sets of texts, which is else another one in each process.

    Programs of others may build layers or read files in the order of a set. A process of somebody who calls a command
    from a program of his own goes on as it is.
    """
    main = vars(sys.modules["__main__"])
    spec = main.get("__spec__")  # of `python -m`
    module = "" if spec is None else spec.name
    ours = module.endswith((".cli.run", ".cli.sweep")) or Path(main.get("__file__", "")).name in COMMANDS
    if ours and os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def environment() -> dict[str, str]:
    """Return the variables of this process, with the places that it imports from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}  # noqa: PTH109
