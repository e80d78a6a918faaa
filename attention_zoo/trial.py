# SPDX-License-Identifier: Apache-2.0
"""The clean process in which a program of a third party is imported and tried; see `attention_zoo.program`.

It answers each question in a fork of itself: which files were loaded and read.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.base import LayerDims
from attention_zoo.faults import fault_line
from attention_zoo.foreign import import_place
from attention_zoo.program import opened
from attention_zoo.registry import get_variant
from attention_zoo.source_digest import libraries, loaded_program, owners_of

TRIAL_SIZES = {"vocabulary_size": 32, "max_length": 16, "num_classes": 2}
"""With which a whole model is built when it is tried, besides those of a run."""
TRIAL_LENGTH = 16
"""Tokens of the examples of a trial, but for images of up to `TRIAL_PIXELS`, which a mixer on a grid needs whole."""
TRIAL_PIXELS = 1024


def serve() -> None:
    """Answer the questions on standard input, each in a fork of this process, until it ends."""
    libraries.update(sys.modules)
    owners_of("attention_zoo")  # reads the installed distributions, once for all forks
    answers = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_WRONLY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # What ends the process may be the trial: then only what the import loads counts.
        content = _forked(request, quiet) or _forked(request | {"variant": "", "trial": ""}, quiet)
        answers.write((content or b'{"error": "importing it ended the process"}') + b"\n")
        answers.flush()


def _forked(request: dict[str, Any], quiet: int) -> bytes:
    """Answer a question in a fork of this process; empty if that ends without an answer."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(quiet, 1)  # what the user's code prints was printed by the process that asks
        os.dup2(quiet, 2)
        with os.fdopen(send, "wb") as reply:
            reply.write(json.dumps(_find(**request)).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as reply:
        content = reply.read()
    os.waitpid(child, 0)
    return content


def _find(
    modules: list[str],
    variant: str,
    options: Mapping[str, Any],
    sizes: Mapping[str, Any],
    trial: str,
    path: list[str],
    folder: str,
) -> dict[str, Any]:
    read: list[str] = []
    names: dict[str, str] = {}

    try:
        os.chdir(folder)
        sys.path[:] = path
        _seed()
        sys.addaudithook(lambda event, arguments: read.extend(opened(event, arguments)))
        for module in modules:
            imported = import_place(module)
            if module.endswith(".py"):
                names[imported.__name__] = Path(module).name
        if variant:
            with contextlib.suppress(Exception):
                _try(variant, options, sizes)
        if trial:
            _seed()
            with contextlib.suppress(Exception):
                EntryPoint(name="trial", value=trial, group="").load()(**options)
        distributions = {owner for module in modules if not module.endswith(".py") for owner in owners_of(module)}
        program = loaded_program(distributions, names, read)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises
        return {"error": fault_line(error)}
    return {"digest": program.digest, "files": program.files, "packages": sorted(program.packages)}


def _try(variant: str, options: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Build a variant, train it for a moment and evaluate it, so that it imports and reads what it needs.

    It is tried with the sizes of a run, and with small ones, at which it may read something even if those fail.
    """
    torch.set_num_threads(1)
    spec = get_variant(variant)
    config = spec.config.from_dict(options)
    builds: list[tuple[Callable[[], Any], torch.Tensor]] = []
    if spec.whole_model:
        named = inspect.signature(spec.program).parameters
        for each in (dict(TRIAL_SIZES), {**TRIAL_SIZES, **sizes}):
            given = {name: each[name] for name in TRIAL_SIZES if name in named}
            build: Callable[[], Any] = functools.partial(spec.program, **given, **config.to_dict())
            length = min(each.get("trial_length", TRIAL_LENGTH), each["max_length"])
            tokens = each["vocabulary_size"]  # 0 for real values
            builds.append((build, torch.randint(1, tokens, (2, length)) if tokens else torch.randn(2, length)))
    else:
        grids: list[tuple[int, int] | None] = [None, (4, 4)]
        layers = [LayerDims(dim=64, num_heads=4, max_length=TRIAL_LENGTH, grid=grid) for grid in grids]
        if sizes:
            fields = {name: size for name, size in sizes.items() if name in LayerDims.__slots__}
            fields["grid"] = sizes["grid"] and tuple(sizes["grid"])  # JSON has no tuples
            layers += [LayerDims(**{**fields, "layer": layer}) for layer in range(sizes["layer"] + 1)]
        for dims in layers:
            pixels = dims.grid[0] * dims.grid[1] + dims.num_prefix if dims.grid else 0
            length = pixels if 0 < pixels <= TRIAL_PIXELS + 1 else min(TRIAL_LENGTH, dims.max_length)
            builds.append((functools.partial(spec.build, config, dims), torch.randn(2, length, dims.dim)))
    for build, x in [*builds, builds[-1]]:  # the last one again: it may read what it has written before
        short = torch.tensor([[x.shape[1]], [x.shape[1] // 2 + 1]])
        mask = torch.arange(x.shape[1]) < short  # (2, length)
        with contextlib.suppress(Exception):
            _seed()
            module = build()
            for training, seen in itertools.product((True, False), (None, mask)):
                module.train(training)
                bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=sizes.get("precision") == "bfloat16")
                _seed()
                with contextlib.suppress(Exception), torch.set_grad_enabled(training), bfloat16:
                    _step(module, x.requires_grad_(training and x.is_floating_point()), seen)


def _seed() -> None:
    """Seed the generators that a program may draw from to choose what it reads, so that each process finds the same."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - that of programs of others
    torch.manual_seed(0)


def _step(module: Any, x: Any, mask: Any) -> None:
    """Call what a step of training or an evaluation calls, each thing whether or not the one before it fails."""
    result = module(x, mask)
    for name in ("parameter_groups", "auxiliary_loss", "statistics", "token_statistics"):
        with contextlib.suppress(Exception):
            getattr(module, name)()
    if module.training:
        with contextlib.suppress(Exception):
            result.sum().backward()
        with contextlib.suppress(Exception):
            module.after_step()
