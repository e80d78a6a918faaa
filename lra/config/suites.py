# SPDX-License-Identifier: Apache-2.0
"""Suites: grids of tasks, variants, options, settings and seeds under one profile, from one YAML file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, field_validator

from attention_zoo import available
from attention_zoo.registry import normalise
from lra.config.labels import Row, row_names, settings_of
from lra.config.profiles import Profile, load_builtin, load_profile, name_unused
from lra.config.resolve import check_variant_names, resolve
from lra.config.schema import RunConfig, Section, Track, distinct
from lra.errors import UsageError
from lra.names import parse_seeds
from lra.tasks import BENCHMARK, task_name

MAX_RUNS = 10_000
"""Runs that are planned at once."""
Grid = dict[str, Any]
"""Values by name; wherever a list stands for a value, every element of it is run."""


class Suite(Section):
    """A set of runs: tasks x seeds x settings x variants with their options."""

    name: str
    title: str = ""
    profile: str
    track: Track = "matched"
    tasks: list[str] | str
    """Names, or the word `all`: those of the benchmark's six tasks that the profile has."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """A list, or text as on the command line: `0-4`."""
    variants: dict[str, Grid | list[Grid]] | str
    """Grids of options by variant; of several grids, the union. Or a list of names, or the word `all`."""
    settings: Grid | list[Grid] = Field(default_factory=dict)
    """Grids of values by path (`model.num_layers`), for the open track; of several grids, the union."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by task, such as a shorter training of one of them; no lists here."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _written_seeds(cls, value: Any) -> Any:
        try:
            return parse_seeds(value, "seeds") if isinstance(value, str) else value
        except UsageError as error:
            raise ValueError(str(error)) from error

    @field_validator("variants", mode="before")
    @classmethod
    def _listed_variants(cls, value: Any) -> Any:
        named = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return {name: {} for name in value} if named else value


def load_suite(name: str) -> Suite:
    """Load a built-in suite by name, or the user's own by the path of its YAML file.

    Raises:
        UsageError: No such suite, or its file does not hold what a suite holds.
    """
    return load_builtin("suites", name, Suite)


def expand(suite: Suite) -> list[RunConfig]:
    """Resolve every run of a suite once. All runs of the first seed come first.

    Raises:
        UsageError: All mistakes of all runs at once, each line once.
    """
    profile = load_profile(suite.profile)
    tasks, variants, settings_of_runs = _tasks(suite, profile), _variants(suite), list(_combinations(suite.settings))
    check_number_of_runs(len(suite.seeds) * len(tasks) * len(settings_of_runs) * len(variants), suite.name)
    if not tasks or not variants:
        raise UsageError(f"{suite.name}: names no {'variants' if tasks else 'tasks'}")
    problems = [f"overrides: {suite.name} has no task {task!r}" for task in suite.overrides if task not in tasks]
    for paths in (*settings_of_runs, *suite.overrides.values()):
        try:
            check_variant_names(paths, [variant for variant, _ in variants])
        except UsageError as error:
            problems.append(str(error))
    runs = list[RunConfig]()
    for seed, task, settings in itertools.product(suite.seeds, tasks, settings_of_runs):
        for variant, options in variants:
            values = settings | suite.overrides.get(task, {})
            problems += [
                f"{suite.name}: variant.{name} is given by variants, and by settings or overrides; leave one out"
                for name in options
                if f"variant.{name}" in values
            ]
            values |= {f"variant.{name}": value for name, value in options.items()}
            try:
                config = resolve(
                    task=task, variant=variant, profile=profile, seed=seed, track=suite.track, overrides=values
                )
                runs.append(config)
            except UsageError as error:
                problems += str(error).splitlines()
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    name_unused(profile, itertools.product(tasks, (variant for variant, _ in variants)))
    return distinct(runs)


def check_number_of_runs(count: int, what: str) -> None:
    """Refuse a plan that nobody can mean, before it is written out.

    Raises:
        UsageError: There are more than `MAX_RUNS`.
    """
    if count > MAX_RUNS:
        raise UsageError(f"{what}: {count:,} runs; at most {MAX_RUNS:,} are planned at once")


def _tasks(suite: Suite, profile: Profile) -> list[str]:
    if isinstance(suite.tasks, str):
        if suite.tasks != "all":
            raise UsageError(f"{suite.name}: tasks is a list or the word all, not {suite.tasks!r}")
        return [task for task in BENCHMARK if task in profile.tasks]
    return [task_name(task) for task in suite.tasks]


def _variants(suite: Suite) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(suite.variants, str):
        if suite.variants != "all":
            raise UsageError(f"{suite.name}: variants is a mapping or the word all, not {suite.variants!r}")
        return [(name, {}) for name in available()]
    return [(normalise(name), options) for name, grid in suite.variants.items() for options in _combinations(grid)]


def _combinations(grids: Grid | list[Grid]) -> Iterator[dict[str, Any]]:
    """Yield every combination of every grid; a value that is not a list counts as a list of one.

    Raises:
        UsageError: There are more than `MAX_RUNS`, or an empty list, of which no run could come.
    """
    if grids == []:
        raise UsageError("an empty list stands for no run; {} stands for the defaults")
    each = grids if isinstance(grids, list) else [grids]
    if empty := [name for grid in each for name, value in grid.items() if value == []]:
        raise UsageError(f"{empty[0]}: an empty list stands for no run; [[]] is the value of an empty list")
    choices = [[value if isinstance(value, list) else [value] for value in grid.values()] for grid in each]
    check_number_of_runs(sum(math.prod(map(len, values)) for values in choices), "a grid")
    for grid, values in zip(each, choices, strict=True):
        for combination in itertools.product(*values):
            yield dict(zip(grid, combination, strict=True))


def labels(runs: list[RunConfig]) -> list[str]:
    """Name each run of a suite: task, row (see `lra.config.labels`), seed."""
    rows = [
        Row(
            variant=run.variant.name,
            shown=run.variant.name,
            heading=run.task,
            profile=run.profile,
            task=run.task,
            settings=settings_of(run),
        )
        for run in runs
    ]
    return [f"{run.task} {name}, seed {run.seed}" for run, name in zip(runs, row_names(rows), strict=True)]
