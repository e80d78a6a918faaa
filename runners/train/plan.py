"""A small grid of cells, resolved before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from attention_zoo import (
    OptionError,
    RegistrationError,
    UnknownVariantError,
    available,
    get_variant,
)
from attention_zoo.registry import normalise, plugin_origin
from lra.config.profiles import load_profile
from lra.config.resolve import check_variant_names, parse_override, resolve
from lra.config.schema import RunConfig, validate_section
from lra.config.yaml_loader import SeveralDocumentsError, load_file, load_text
from lra.data.dataset import open_prepared
from lra.errors import DataError, UsageError
from lra.models.convnet import VARIANT as CONVNET_VARIANT
from lra.results.records import read_record
from lra.tasks import get_task

from .cost import parameters_of


def plan(
    *, attn: str, task: str, profile: str, seeds: Sequence[int], track: str, overrides: Sequence[str]
) -> list[RunConfig]:
    """Resolve tasks x variants x seeds.

    Raises:
        UsageError: All mistakes of all cells at once, each line once.
    """
    variants = available() if attn.strip() == "all" else [normalise(name) for name in attn.split(",") if name.strip()]
    recipe = load_profile(profile)
    tasks = list(recipe.tasks) if task.strip() == "all" else [normalise(n) for n in task.split(",") if n.strip()]
    if not variants or not tasks:
        raise UsageError("--attn and --task each need a name")
    values = dict(map(parse_override, overrides))
    check_variant_names(values, variants)
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


CONVNET_QUICK = {"model.dim": "16", "model.head_hidden": "0", "train.lr": "5e-4"}
"""What the bare command sets for a convnet in profile `quick`, whose recipe is for transformers: with its width, head
and learning rate a convnet ends at chance, several times as slowly."""


def convnet_defaults(
    attn: str | None, track: str | None, overrides: Sequence[str], profile: str
) -> tuple[str | None, str | None, list[str], str | None]:
    """Fill in what `--set model.family=convnet` without a variant and a track leaves open.

    Returns:
        Variants and track, filled in where they are None; overrides, with those of `CONVNET_QUICK` in front if neither
        was given and the profile is `quick`; and a line that says so, None if nothing was filled in.

    Raises:
        UsageError: An override is not `key=value`.
    """
    given = dict(map(parse_override, overrides))
    if given.get("model.family") != "convnet":
        return attn, track, list(overrides), None
    chosen = [] if attn else [f"--attn {CONVNET_VARIANT}, since its own convolutions mix"]
    chosen += [] if track else ["--track open, since no profile has one"]
    settings = []
    if profile == "quick" and not attn and not track:
        settings = [f"{key}={value}" for key, value in CONVNET_QUICK.items() if key not in given]
    if settings:
        flags = " ".join(f"--set {setting}" for setting in settings)
        chosen.append(f"{flags}, since the recipe of profile quick is for transformers")
    line = f"model.family=convnet: {'; '.join(chosen)}." if chosen else None
    return attn or CONVNET_VARIANT, track or "open", [*settings, *overrides], line


def read_config(source: str) -> RunConfig:
    """Read the configuration of one cell from a YAML or JSON file, a record, or standard input (`-`).

    Raises:
        UsageError: There is no such file, or it does not hold a configuration that can be run here.
        StoreError: It is a record, and damaged.
    """
    path = Path(source)
    if source != "-" and not path.is_file():
        raise UsageError(f"--config {source}: no such file")
    try:
        values = load_text(sys.stdin.read(), "standard input") if source == "-" else load_file(path)
    except SeveralDocumentsError as error:
        raise UsageError(f"{source}: several cells; --config runs one: keep those lines, up to a line `---`") from error
    if isinstance(values, dict) and values.keys() == {"record", "sha256"}:
        record = read_record(path)
        config, same = record.config, record.config.run_id(record.data_digest) == record.run_id
    else:
        if isinstance(values, dict) and "tasks" in values:
            raise UsageError(f"{source}: {_grid_hint(values, source)}")
        if not isinstance(values, dict) or not values.keys() & RunConfig.model_fields.keys():
            raise UsageError(f"{source}: neither a configuration nor a record; --dry-run prints a configuration")
        config = _validated(values, source)
        same = values == config.model_dump()
    if not same:
        raise UsageError(f"{source}: not a complete configuration of this version; it would be another cell than meant")
    check_runnable(config)
    return config


def _grid_hint(values: dict[str, Any], source: str) -> str:
    """Say how a file that stands for many cells is run: a suite has seeds, a profile has not."""
    if "seeds" in values:
        return f"a suite, not the configuration of one cell; lra-sweep run {source} runs it"
    return f"a profile, not the configuration of one cell; --attn NAME --task NAME --profile {source} runs it"


def _validated(values: dict[str, Any], source: str) -> RunConfig:
    config, problems = validate_section(RunConfig, values, source)
    if config is None:
        raise UsageError("\n".join(problems))
    return config


def check_runnable(config: RunConfig) -> None:
    """Check the parts of a ready-made configuration that the task and the variant know about.

    Raises:
        UsageError: A name is unknown, an option wrong or left out, or the plug-in has another version.
    """
    data, problems = validate_section(get_task(config.task).options, config.data, "data")
    name, options = config.variant.name, config.variant.options
    try:
        complete = get_variant(name).config.from_dict(options).to_dict()
    except (UnknownVariantError, RegistrationError, OptionError) as error:
        raise UsageError(f"variant: {error.args[0]}") from error
    if data is not None and (data.model_dump() != config.data or complete != options):
        problems.append("a configuration names every option of task and variant; this one leaves some out")
    if plugin_origin(name) != config.variant.origin:
        problems.append(f"variant {name!r} is {plugin_origin(name)!r} here, not {config.variant.origin!r}")
    if problems:
        raise UsageError("\n".join(problems))


def describe(config: RunConfig, home: Path) -> str:
    """Write out one cell for `--dry-run`: the configuration, and as comments the data, parameters and cell id.

    `read_config` takes the text back.

    Raises:
        UsageError: There is no such model.
    """
    task = get_task(config.task)
    options = task.options.model_validate(config.data)
    parameters, full = parameters_of(config)
    folder = home / task.folder_name(options)
    try:
        cell = config.run_id(open_prepared(folder, verify=False).digest)
    except DataError:
        cell = "known once the data is prepared, since it covers the data's content"
    notes = (
        f"# data: {task.dataset_name(options)}\n"
        f"# parameters: {parameters:,} ({parameters / full:.3f} x full attention)\n"
        f"# cell id: {cell}\n"
    )
    return yaml.safe_dump(config.model_dump(), sort_keys=False) + notes
