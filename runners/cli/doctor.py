# SPDX-License-Identifier: Apache-2.0
"""`lra-doctor`: what this machine has, and a self-test of a few seconds."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from lra.cli import Command, one_line_errors, version_option
from lra.terminal import echo

from ..threads import default_threads
from .options import data_dir_option, store_option

PACKAGES = (
    "lra-harness",
    "torch",
    "numpy",
    "pandas",
    "triton",
    "transformers",
    "ray",
    "submitit",
    "tensorboard",
    "wandb",
)
"""Versions that are shown; all after pandas are optional."""


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
@store_option
@data_dir_option
@one_line_errors
def command(*, store_folder: Path, home: Path) -> None:
    """Show versions, devices, folders and prepared data, and test the installation in about ten seconds.

    Paste the output into a bug report. The exit code is 1 if a test fails.
    """
    import torch
    from tabulate import tabulate

    from lra.measure.environment import describe_environment

    environment = describe_environment(torch.device("cpu"))
    rows = [("python", f"{platform.python_version()} on {environment['platform']}")]
    rows += [(name, _version(name)) for name in PACKAGES]
    rows.append(("CPU", f"{environment['cpu'] or 'unknown'}, {os.cpu_count()} cores, {environment['cpu_capability']}"))
    rows.append(("threads of a run", str(default_threads())))
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        rows.append((f"GPU {number}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        rows.append(("GPU", "none that torch can use; runs take the CPU and profile quick by default"))
    rows += [("results", _folder(store_folder)), ("prepared data", _data(home))]
    echo(tabulate(rows, tablefmt="plain", disable_numparse=True))
    echo()
    if not self_test():
        sys.exit(1)
    echo("All is well. Next: lra-run --attn contextpool --task listops")


def self_test() -> bool:
    """Test variants, pooling and training, print a line for each, and say whether all passed."""
    passed = True
    for title, test in (
        ("attention variants can be imported", _variants),
        ("ContextPool's fast form equals its formula", _pooling),
        ("a run trains, and its repetition has the same bits", _training),
    ):
        started = time.monotonic()
        try:
            test()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this installation
            passed = False
            echo(f"FAIL  {title}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        else:
            echo(f"ok    {title} ({time.monotonic() - started:.1f} s)")
    return passed


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _folder(folder: Path) -> str:
    here = folder if folder.exists() else folder.absolute().parent
    return f"{folder} ({'can be written' if os.access(here, os.W_OK) else 'CANNOT BE WRITTEN'})"


def _data(home: Path) -> str:
    from .data import prepared_folders

    return f"{home}: {', '.join(folder.name for folder in prepared_folders(home)) or 'none yet'}"


def _variants() -> None:
    from .variant_docs import catalogue

    _, problems = catalogue()
    if problems:
        raise RuntimeError("; ".join(problems))


def _pooling() -> None:
    """Compare the backend that the CPU takes with the formula in float64, in outputs and gradients."""
    import torch

    from contextpool import context_pool

    generator = torch.Generator().manual_seed(0)
    x, log_weights, sigma = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 300, 16), (2, 300), (2, 300))
    )
    results = []
    for backend in ("auto", "reference"):
        leaves = [value.clone().requires_grad_() for value in (x, log_weights, sigma.abs() * 20 + 1)]
        out = context_pool(*leaves, backend=backend)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for fast, exact in zip(*results, strict=True):
        torch.testing.assert_close(fast, exact)


def _training() -> None:
    """Train a tiny run twice in stores of its own."""
    digests = [_digest_of_a_run() for _ in range(2)]
    if digests[0] != digests[1]:
        raise RuntimeError("two runs of one seed ended with different weights")


def _digest_of_a_run() -> str:
    import torch

    from lra.config.profiles import load_profile
    from lra.results.records import Store

    from ..train.distributed import SINGLE
    from ..train.plan import plan
    from ..train.prepare_data import prepare_all
    from ..train.run import RunOptions, run

    settings = {
        "data.train": 64, "data.validation": 16, "data.test": 16, "model.num_layers": 1, "train.batch_size": 8,
        "train.steps": 10, "train.warmup_steps": 2, "train.eval_every": 10,
    }  # fmt: skip
    [config] = plan(
        attn="contextpool", task="listops", profile=load_profile("quick"), seeds=[0], track="open", overrides=settings
    )
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = prepare_all([config], SINGLE, home, progress=False)[config.task]
        options = RunOptions(device=torch.device("cpu"), progress=False)
        record = run(config, data, Store(home / "store"), options, lambda: False)
    if record.outcome is None:
        raise RuntimeError(f"the run ended as {record.status}: {record.detail}")
    return record.outcome.weights_digest


main = command

if __name__ == "__main__":
    main()
