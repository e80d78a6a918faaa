# SPDX-License-Identifier: Apache-2.0
"""The configurations of a command, resolved before anything runs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from attention_zoo import RegistrationError, UnknownVariantError, available, get_variant
from attention_zoo.foreign import ForeignError
from attention_zoo.program import reads_below
from attention_zoo.registry import normalise
from lra.config.builtin import profile_names
from lra.config.labels import row_name
from lra.config.profiles import PROFILE_NAME, FamilyRecipe, Profile, load_profile, look_alike, name_unused
from lra.config.resolve import (
    WHOLE_MODEL_READS,
    check_variant_names,
    in_one_form,
    pretraining,
    resolve,
    run_problems,
    spelt_out,
    with_programs,
)
from lra.config.schema import ModelConfig, RunConfig, StartConfig, TrainConfig, canonical_json, distinct, valid_section
from lra.config.suites import check_number_of_runs
from lra.config.yaml_loader import MAX_BYTES, SeveralDocumentsError, dump_text, load_file, load_text
from lra.errors import DataError, UsageError
from lra.measure.model_size import parameters_of
from lra.models.convnet import VARIANT as CONVNET_VARIANT
from lra.models.foreign import ForeignModel
from lra.models.transformer import build_model
from lra.reading import is_there, reading
from lra.results.records import RunRecord, read_record
from lra.tasks import BENCHMARK, get_task, info_of, task_name

from .run import check_process

TIMED_ROWS = 12
"""Rows of a dry run that are timed; more would take too long."""


def plan(
    *,
    attn: str,
    task: str,
    profile: Profile,
    seeds: Sequence[int],
    track: str,
    overrides: Mapping[str, Any],
    model: str = "",
    start: StartConfig | None = None,
) -> list[RunConfig]:
    """Resolve tasks x variants x seeds.

    Args:
        attn: Names of variants, separated by commas, or `all`.
        task: Names of tasks, separated by commas, or `all`: those of the benchmark's six that the profile has.
        profile: The recipe.
        seeds: The seeds of each variant.
        track: `matched` or `open`.
        overrides: Values by path, see `lra.config.resolve.resolve`.
        model: References of whole models, separated by commas, which stand beside the variants.
        start: The run whose weights all of them start from.

    Raises:
        UsageError: All mistakes of all runs at once, each line once.
    """
    variants = available() if attn.strip() == "all" else _names(attn)
    tasks = [task_name(name) for name in _names(task)]
    if task.strip() == "all":
        tasks = [name for name in BENCHMARK if name in profile.tasks]
    models = _names(model)
    for name in models:
        _check_builder(name)
    if models and not variants:
        _check_settings(overrides)
    variants += models
    if not variants or not tasks:
        raise UsageError("--attn and --task each need a name")
    check_variant_names(overrides, variants)
    check_number_of_runs(len(set(tasks)) * len(set(variants)) * len(seeds), "--attn x --task x --seeds")
    configs, problems = [], []
    for name in dict.fromkeys(tasks):
        for variant in dict.fromkeys(variants):
            for seed in seeds:
                try:
                    config = resolve(
                        task=name,
                        variant=variant,
                        profile=profile,
                        seed=seed,
                        track="open" if track == "open" else "matched",
                        overrides=overrides,
                        start=start,
                    )
                    configs.append(config)
                except UsageError as error:
                    problems += str(error).splitlines()
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    name_unused(profile, ((config.task, config.variant.name) for config in configs))
    return distinct(configs)


def _names(text: str) -> list[str]:
    return [normalise(name) for name in text.split(",") if name.strip()]


def _check_builder(name: str) -> None:
    """Check that a name leads to what builds a whole model.

    Raises:
        UsageError: It does not.
    """
    try:
        spec = get_variant(name)
    except (UnknownVariantError, RegistrationError) as error:
        raise UsageError(f"--model: {error.args[0]}") from error
    if not spec.whole_model:
        raise UsageError(
            f"--model {name}: it has no parameter num_classes; a model is built by a function "
            "build(vocabulary_size, max_length, num_classes), and a mixer goes to --attn"
        )


def _check_settings(overrides: Mapping[str, Any]) -> None:
    """Check that no setting of our models is given where only whole models of others run.

    Raises:
        UsageError: One is, which would change the id of the run and nothing else.
    """
    for path in overrides:
        if path.startswith("model.") and path.removeprefix("model.") not in WHOLE_MODEL_READS:
            raise UsageError(f"{path}: a model of your own does not read it; its own options are variant.NAME")


def check_models(configs: Sequence[RunConfig], device: torch.device) -> None:
    """Try out the whole models of others among the runs, one for each task, before anything takes time.

    Raises:
        UsageError: One cannot be built or called, mixes the sequences of a batch, or ignores the mask; or its code
            reads here what it did not read in the trial from which the run id comes.
    """
    first = {(config.task, canonical_json(config.hashed()["variant"])): config for config in reversed(configs)}
    for config in first.values():
        info = info_of(config)
        if config.model.family != "foreign":
            continue
        try:
            with reads_below(check_models) as read:  # a run would find in memory what is read here
                model = build_model(config, info.vocab_size, info.num_classes).to(device)
                assert isinstance(model, ForeignModel)
                model.try_out()
        except ForeignError as error:
            raise UsageError(f"{config.variant.name}, {config.task}: {error}") from error
        check_process(config, read)


def family_defaults(
    attn: str | None, track: str | None, overrides: Mapping[str, Any], profile: Profile
) -> tuple[str | None, str | None, str | None]:
    """Fill in what `--set model.family=convnet` leaves open.

    A convnet has one variant, and no profile has one on the matched track.

    Returns:
        Variants and track, filled in where they are None; and a line that says what was filled in, by this function or
        by the profile's recipe for the family. The line is None if that is nothing.
    """
    family = overrides.get("model.family")
    if family != "convnet":
        return attn, track, None
    chosen = [] if attn else [f"--attn {CONVNET_VARIANT}, since its own convolutions mix"]
    chosen += [] if track else ["--track open, since no profile has one"]
    recipe = profile.families.get(family, FamilyRecipe()).model_dump()
    paths = {f"{section}.{key}": value for section, values in recipe.items() for key, value in values.items()}
    settings = " ".join(f"{path}={value}" for path, value in paths.items() if path not in overrides)
    chosen += [f"{settings}, from the recipe of profile {profile.name} for a convnet"] if settings else []
    line = f"model.family=convnet: {'; '.join(chosen)}." if chosen else None
    return attn or CONVNET_VARIANT, track or "open", line


def read_config(source: str) -> tuple[RunConfig, RunRecord | None]:
    """Read the configuration of one run from a YAML or JSON file, a record, or standard input (`-`).

    Returns:
        The configuration, and the record if it is from one.

    Raises:
        UsageError: The file does not exist, or does not hold a configuration that can be run here.
        StoreError: The file is a damaged record.
    """
    path = Path(source)
    with reading(f"--config {source[:80]}", UsageError):  # such as a name that is too long for a file
        found = source == "-" or path.is_file()
    if not found:
        raise UsageError(f"--config {source}: no such file")
    try:
        values = load_text(sys.stdin.read(MAX_BYTES + 1), "standard input") if source == "-" else load_file(path)
    except SeveralDocumentsError as error:
        raise UsageError(
            f"{source}: several runs; --config runs one: keep the lines of one, up to a line `---`"
        ) from error
    record = None
    if isinstance(values, dict) and values.keys() == {"record", "sha256"}:
        record = read_record(path)
        config = record.config
        same = config.run_id(record.data_digest, record.numerics_version) == record.run_id
    else:
        if isinstance(values, dict) and "tasks" in values:
            raise UsageError(f"{source}: {_grid_hint(values, source)}")
        if not isinstance(values, dict) or not values.keys() & RunConfig.model_fields.keys():
            raise UsageError(f"{source}: neither a configuration nor a record; --dry-run prints a configuration")
        config = valid_section(RunConfig, values, source)
        same = not _lacks(values, config.hashed())
    if not same:
        raise UsageError(
            f"{source}: not a complete configuration of this version; it would be another run than the one meant"
        )
    config = runnable(config)
    if record is None:
        _check_form(config, source)
        _check_recipe(config, source)
    return config, record


def _check_form(config: RunConfig, source: str) -> None:
    """Check that a configuration spells nothing out that an equal run leaves out.

    Raises:
        UsageError: It does, and would be a second run of the same numbers.
    """
    profile = load_profile(config.profile) if config.profile in profile_names() else None
    usual = in_one_form(config, *spelt_out(config, profile)).model_dump()
    sections = config.model_dump()
    sections["variant"], usual["variant"] = sections["variant"]["options"], usual["variant"]["options"]
    for section, values in sections.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if value != usual[section][name]:
                raise UsageError(
                    f"{source}: {section}.{name}: {value} means the same as {usual[section][name]}; write that, under "
                    "which the run has its id"
                )


def _lacks(values: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Say whether some setting of a complete configuration is not in the values that were given."""
    return any(
        name not in values
        or (isinstance(inner, Mapping) and isinstance(values[name], Mapping) and _lacks(values[name], inner))
        for name, inner in whole.items()
    )


def _check_recipe(config: RunConfig, source: str) -> None:
    """Check that a configuration of the matched track is what its profile says, if the profile is one of ours.

    Raises:
        UsageError: It has other settings, under which a table would show it as a run of that profile.
    """
    own = look_alike(config.profile) or config.profile
    if own != config.profile or not re.fullmatch(PROFILE_NAME, config.profile):
        raise UsageError(f"{source}: `profile: {config.profile}` could be taken for another one; take plain letters")
    if config.track == "open" or config.profile not in profile_names():
        return
    profile = load_profile(config.profile)
    recipe = profile.recipe(config.task, config.model.family)
    task = get_task(config.task)
    data = task.options.model_validate(recipe.data)
    model = {"max_length": task.max_length(data)} | recipe.model
    sections = {
        "data": data.model_dump(),
        "model": ModelConfig.model_validate(model).model_copy(update={"pool_origin": config.model.pool_origin}),
        "train": TrainConfig.model_validate(recipe.train),
    }
    share = {} if config.pretrain is None else {"share": config.pretrain.share}
    sections["pretrain"], _ = pretraining(
        get_task(config.task).info, recipe.pretrain | share, beside=config.train.denoise > 0.0
    )
    theirs, ours = config.hashed(), config.model_copy(update=sections).hashed()
    wrong = ["start"] if config.start is not None else []
    wrong += [
        f"{section}.{name}"
        for section in ("data", "model", "train", "pretrain")
        for name in sorted({*theirs.get(section, {}), *ours.get(section, {})})
        if theirs.get(section, {}).get(name) != ours.get(section, {}).get(name)
        and not profile.admits(f"{section}.{name}", theirs.get(section, {}).get(name))
    ]
    if wrong:
        raise UsageError(
            f"{source}: {', '.join(wrong)} not as in profile {config.profile!r}; write `track: open`, or another "
            "name of the profile"
        )


def _grid_hint(values: dict[str, Any], source: str) -> str:
    """Return how to run a file that stands for many runs. A suite has seeds and a profile does not."""
    if "seeds" in values:
        return f"a suite, not the configuration of one run; lra-sweep run {source} runs it"
    return f"a profile, not the configuration of one run; --attn NAME --task NAME --profile {source} runs it"


def runnable(config: RunConfig) -> RunConfig:
    """Return a complete configuration with typed values, after a check of the parts that task and variant define.

    Raises:
        UsageError: A name is unknown, an option is wrong or left out, or the program of a third party is another one.
    """
    data = valid_section(get_task(config.task).options, config.data, "data")
    typed = with_programs(config.model_copy(update={"data": data.model_dump()}))
    written = (("variant", config.variant.name, normalise), ("task", config.task, task_name))
    problems = [
        f"{what} {name!r}: its name is {registered(name)!r}, under which a run has another id"
        for what, name, registered in written
        if registered(name) != name
    ]
    if _lacks(config.model_dump(), typed.hashed()):
        problems.append("a configuration names every option of task and variant; this one leaves some out")
    for what, there, here in (
        (f"task {config.task!r}", config.task_origin, typed.task_origin),
        (f"variant {config.variant.name!r}", config.variant.origin, typed.variant.origin),
        (f"pool {config.model.pool!r}", config.model.pool_origin, typed.model.pool_origin),
    ):
        if there != here:
            problems.append(f"{what} is {here!r} here, not {there!r}: with another program it is another run")
    if problems := problems + run_problems(typed):
        raise UsageError("\n".join(problems))
    return typed


def describe(config: RunConfig, home: Path) -> str:
    """Write one run out for `--dry-run`: its configuration, and as comments the data, the parameters and the run id.

    `read_config` reads this text.

    Raises:
        UsageError: The variant refuses the sizes of the model.
        DataError: The prepared data is damaged, or behind a link to what is not there.
    """
    task = get_task(config.task)
    options = task.options.model_validate(config.data)
    parameters, full = parameters_of(config)
    run_id = "known once the data is prepared, since it covers the content of the data"
    if is_there(home / task.folder_name(options)):
        run_id = config.run_id(task.opened(options, home).digest)
    notes = (
        f"# data: {task.dataset_name(options)}\n"
        f"# parameters: {parameters:,}{f' ({parameters / full:.3f} x full attention)' if config.mixes else ''}\n"
        f"# run id: {run_id}\n"
    )
    return dump_text(config.model_dump()) + notes


def usual_length(config: RunConfig, home: Path) -> int:
    """Return the mean length of the training sequences, rounded up; the longest possible if they are not prepared."""
    task = get_task(config.task)
    try:
        data = task.opened(task.options.model_validate(config.data), home)
    except DataError:
        return config.model.max_length
    train = data.manifest.splits["train"]
    return math.ceil(train.tokens / train.examples / (2 if task.info.paired else 1))


def plan_table(configs: Sequence[RunConfig], home: Path, minutes: Callable[[RunConfig, int], float | None]) -> str:
    """Format a grid for `--dry-run`: a row for each task and variant, seeds aside.

    Args:
        configs: The runs.
        home: Folder of prepared data, for the lengths of the sequences.
        minutes: Estimates those of a run at a length; asked for `TIMED_ROWS` rows or fewer.

    Raises:
        UsageError: A variant refuses the sizes of its model.
    """
    rows = []
    chosen = {(config.task, config.variant.name): config for config in configs}.values()
    for config in chosen:
        estimate = minutes(config, usual_length(config, home)) if len(chosen) <= TIMED_ROWS else None
        parameters, full = parameters_of(config)
        longest, steps = config.model.max_length, config.train.steps
        tokens = steps * config.train.batch_size * longest * (2 if get_task(config.task).info.paired else 1)
        rows.append(
            (
                config.task,
                row_name(config),
                f"{steps:,}",
                str(config.train.batch_size),
                f"{longest:,}",
                f"{tokens / 1e6:,.0f}",
                f"{parameters:,}",
                f"{parameters / full:.3f}" if config.mixes else "-",
                "-" if estimate is None else f"{estimate:.1f}",
            )
        )
    columns = ("task", "variant", "steps", "batch", "length", "million tokens", "parameters", "x full", "minutes")
    seeds = len({config.seed for config in configs})
    return (
        tabulate(rows, headers=columns, disable_numparse=True, colalign=("left", "left", *["right"] * 7))
        + f"\n\n{len(configs)} runs ({seeds} seed{'' if seeds == 1 else 's'}), profile {configs[0].profile}, "
        f"{configs[0].track} track. Tokens: at most, if every sequence had the longest length.\n"
        "Minutes: of the steps on this CPU if idle, from one step at the data's mean length, once it is prepared.\n"
        "One task, one variant and one seed print their configuration; lra-sweep plan SUITE --probe estimates times.\n"
    )


def shortened(config: RunConfig, steps: int, profile: Profile) -> RunConfig:
    """Return the same run of a profile with at most so many steps, on the open track: for trying things out.

    Raises:
        UsageError: It is no run of the open track.
    """
    train = config.train
    limits = {name: min(getattr(train, name), steps) for name in ("steps", "eval_every", "warmup_steps")}
    short = config.model_copy(update={"train": train.model_copy(update=limits), "track": "open"})
    short = in_one_form(short, *spelt_out(short, profile))
    if problems := run_problems(short):
        raise UsageError("\n".join(f"{problem} (--limit-steps makes a run of the open track)" for problem in problems))
    return short


def check_shareable(configs: Sequence[RunConfig], num_processes: int) -> None:
    """Check that the processes that `torchrun` has started can share what is to be run.

    Raises:
        UsageError: It is more than one run, or its batch does not divide by the number of processes, or may not be
            divided.
    """
    if num_processes == 1:
        return
    if len(configs) > 1:
        raise UsageError(
            f"torchrun shares one run among {num_processes} processes, these are {len(configs)} runs: "
            "name one, or run them side by side with lra-sweep run SUITE --slots N"
        )
    if configs[0].model.norm == "batch":
        raise UsageError("model.norm: batch norm needs its batch whole, so one process has to compute it")
    size = configs[0].train.batch_size
    if size % num_processes:
        divisors = [count for count in range(1, size + 1) if size % count == 0]
        raise UsageError(
            f"a batch of {size} cannot be shared equally by {num_processes} processes; "
            f"--nproc-per-node times --nnodes has to be one of {', '.join(map(str, divisors))}"
        )
