"""A small grid of cells, resolved before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from attention_zoo import available
from attention_zoo.registry import normalise
from lra.config import RunConfig
from lra.errors import DataError, UsageError
from lra.model import build_model, count_parameters
from lra.prepared import open_prepared
from lra.profiles import load_profile, parse_override, resolve
from lra.tasks import get_task

from .cell import parameters_with_full


def plan(
    *, attn: str, task: str, profile: str, seeds: Sequence[int], track: str, overrides: Sequence[str]
) -> list[RunConfig]:
    """Resolve tasks x variants x seeds.

    Raises:
        UsageError: All mistakes of all cells at once, each line once.
    """
    variants = available() if attn.strip() == "all" else [normalise(name) for name in attn.split(",") if name.strip()]
    tasks = [normalise(name) for name in task.split(",") if name.strip()]
    if not variants or not tasks:
        raise UsageError("--attn and --task each need a name")
    recipe = load_profile(profile)
    values = dict(map(parse_override, overrides))
    cells, problems = [], []
    for task_name in dict.fromkeys(tasks):
        for variant in dict.fromkeys(variants):
            for seed in seeds:
                try:
                    config = resolve(
                        task=task_name,
                        variant=variant,
                        profile=recipe,
                        seed=seed,
                        track="open" if track == "open" else "matched",
                        overrides=values,
                    )
                    cells.append(config)
                except UsageError as error:
                    problems += str(error).splitlines()
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    return cells


def describe(config: RunConfig, home: Path) -> str:
    """Write out one cell for `--dry-run`: configuration, parameters, cell id."""
    task = get_task(config.task)
    options = task.options.model_validate(config.data)
    with torch.device("meta"):
        parameters = count_parameters(build_model(config, task.info.vocab_size, task.info.num_classes))
    full = parameters_with_full(config, task.info.vocab_size, task.info.num_classes)
    folder = home / task.folder_name(options)
    try:
        cell = config.cell_id(open_prepared(folder, verify=False).digest)
    except DataError:
        cell = "known once the data is prepared, since it covers the data's content"
    head = f"data: {task.edition(options)}\nparameters: {parameters:,} ({parameters / full:.3f} x full attention)\n"
    return f"{yaml.safe_dump(config.model_dump(), sort_keys=False)}{head}cell id: {cell}\n"
