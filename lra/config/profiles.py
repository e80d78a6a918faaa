# SPDX-License-Identifier: Apache-2.0
"""Profiles: published recipes, one YAML file each."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field

from lra.config.builtin import config_folder, profile_names
from lra.config.schema import ModelConfig, Precision, Section, valid_section, without_folder
from lra.config.yaml_loader import load_file
from lra.errors import UsageError
from lra.names import fold, suggest, suggest_path
from lra.reading import reading
from lra.tasks import TASKS, get_task, is_own, task_name
from lra.tasks.plugins import announced
from lra.terminal import echo

S = TypeVar("S", bound=Section)
V = TypeVar("V")
D = TypeVar("D")
FAMILY: str = ModelConfig.model_fields["family"].default
_SHAPES = {ord("0"): "o", ord("1"): "l", ord("i"): "l", ord("_"): "", ord("."): ""}
_WHAT_RUNS = ("name", "tasks", "variants", "families", "precisions")
"""The fields of a profile in which a copy of a built-in one may not differ under its name."""
PROFILE_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]*$"


class TaskRecipe(Section):
    """What a profile says of one task; the sections are checked when a run is resolved."""

    data: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any]
    train: dict[str, Any]
    pretrain: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of variants that the source sets on this task alone, by variant; they go before those of the profile."""


class FamilyRecipe(Section):
    """What a profile sets differently for one model family, in all its tasks."""

    model: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


class Profile(Section):
    """A published recipe: which sizes, which optimiser, for how long."""

    name: Annotated[str, Field(pattern=PROFILE_NAME)]
    """Plain letters, so that no name looks like a built-in one in a table: see `look_alike`."""
    title: str
    source: str
    """Where the figures come from."""
    departures: list[str] = Field(default_factory=list)
    """Where we knowingly differ from the source."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of variants as the source sets them, by variant."""
    families: dict[str, FamilyRecipe] = Field(default_factory=dict)
    """Settings of a model family that replace those of the task, by family."""
    precisions: list[Precision] = Field(default_factory=list)
    """What `train.precision` may be on the matched track besides what the recipe says, since the source trains so."""
    tasks: dict[str, TaskRecipe]

    def recipe(self, task: str, family: str = "") -> TaskRecipe:
        """Return the recipe of a task, with the settings of a model family in place of the task's own.

        A task that is named by its file may stand in the profile under the name that it has in its facts. A generated
        task that the profile does not have comes with a recipe of its own.

        Raises:
            UsageError: The profile does not define the task, and the task has no recipe.
        """
        recipe = self._find(task)
        if recipe is None:
            having = [name for name in profile_names() if task in load_builtin("profiles", name, Profile).tasks]
            hint = f"these do: {', '.join(having)} (--profile {having[0]})" if having else suggest(task, self.tasks)
            raise UsageError(f"profile {self.name!r} does not define task {task!r}; {hint}")
        special = self.families.get(family or recipe.model.get("family", FAMILY), FamilyRecipe())
        return recipe.model_copy(update={"model": recipe.model | special.model, "train": recipe.train | special.train})

    def admits(self, path: str, value: Any) -> bool:
        """Say whether the matched track admits a value of a setting that is not the variant's."""
        if path == "pretrain.share":  # with it, a run has the same steps
            return True
        # Compiled code and the padding for it do not change what is computed but for rounding and draws.
        compiled = path == "train.compile" or (path == "train.padding" and value == "coarse")
        return compiled or (path == "train.precision" and value in self.precisions)

    def options(self, variant: str, task: str) -> dict[str, Any]:
        """Return the options that the source gives to a variant on a task; empty for a task without a recipe."""
        recipe = self._find(task)
        own = {} if recipe is None else recipe.variants
        return _entry(self.variants, variant, {}) | _entry(own, variant, {})

    def _find(self, task: str) -> TaskRecipe | None:
        if (recipe := _entry(self.tasks, task, None)) is not None:
            return recipe
        if ":" not in task and task in TASKS:
            return None
        the_task = get_task(task)
        own = the_task.default_recipe()
        return self.tasks.get(the_task.info.name) or (None if own is None else TaskRecipe.model_validate(own))


def _entry(entries: Mapping[str, V], name: str, default: D) -> V | D:
    """Return what a profile has of a name; a file is the same wherever it is, as in the identity of a run."""
    return next((value for key, value in entries.items() if without_folder(key) == without_folder(name)), default)


_load_once = functools.cache(load_file)
"""A built-in file does not change while a process runs, and YAML takes longer to read than anything else here."""


def load_profile(name: str) -> Profile:
    """Load a built-in profile by name, or one of the user's by the path of its YAML file.

    Raises:
        UsageError: No such profile, or its file does not hold what a profile holds, or a changed copy of a built-in
            profile still has its name, under which tables would show its runs beside the built-in ones.
    """
    profile = load_builtin("profiles", name, Profile)
    if name not in profile_names():
        _check_names(profile, name)
    taken = look_alike(profile.name)
    if taken is not None and taken != name:
        own = load_builtin("profiles", taken, Profile)
        if any(getattr(profile, part) != getattr(own, part) for part in _WHAT_RUNS):
            raise UsageError(
                f"{name}: `name: {profile.name}` is the name of a built-in profile, or looks like it, and this file "
                "has other settings; give it a name of its own"
            )
    return profile


def _check_names(profile: Profile, source: str) -> None:
    """Check that each variant and family that a profile gives settings to is there, under its own name.

    Raises:
        UsageError: One is not, so its settings would change nothing and say nothing.
    """
    from attention_zoo import available  # here, since it imports torch

    families = get_args(ModelConfig.model_fields["family"].annotation)
    parts: list[tuple[str, Collection[str], Collection[str]]] = [
        ("families", profile.families, families),
        ("variants", profile.variants, available()),
        *((f"tasks.{task}.variants", recipe.variants, available()) for task, recipe in profile.tasks.items()),
    ]
    problems = [
        f"{source}: {part}.{name}: no such name; {suggest(name, known)}"
        for part, names, known in parts
        for name in names
        if name not in known and ":" not in name
    ]
    problems += [
        f"{source}: tasks.{name}: write {task_name(name)!r}" for name in profile.tasks if name != task_name(name)
    ]
    named: list[tuple[str, Collection[str]]] = [("tasks", profile.tasks), *((part, names) for part, names, _ in parts)]
    for part, names in named:
        alike = Counter(map(without_folder, names))
        problems += [f"{source}: {part}: two names for {name}" for name, count in alike.items() if count > 1]
    if problems:
        raise UsageError("\n".join(problems))


def name_unused(profile: Profile, runs: Iterable[tuple[str, str]]) -> None:
    """Print which names in a profile nobody knows and no run of a command has: their settings would change nothing.

    Args:
        profile: Of a user; in those of this project all names are known.
        runs: Tasks and variants of the runs.
    """
    pairs = list(runs)
    written = set(map(without_folder, profile.tasks))
    tasks = {name if (name := without_folder(task)) in written else get_task(task).info.name for task in dict(pairs)}
    variants = {without_folder(variant) for _, variant in pairs}
    named = [("tasks", name, tasks) for name in profile.tasks if not is_own(name) and name not in announced()]
    named += [("variants", name, variants) for name in profile.variants if ":" in name]
    for task, recipe in profile.tasks.items():
        named += [(f"tasks.{task}.variants", name, variants) for name in recipe.variants if ":" in name]
    for part, name, used in named:
        if without_folder(name) not in used:
            echo(f"Profile {profile.name}: no run of this command has {part}.{name}.", err=True)


def look_alike(name: str) -> str | None:
    """Return the built-in profile of a name, or the one that it could be taken for in a table."""
    return next((own for own in profile_names() if _skeleton(own) == _skeleton(name)), None)


def _skeleton(name: str) -> str:
    """Return what is left of a name without case, dots and dashes, with one letter for all of a shape."""
    return fold(name).translate(_SHAPES).replace("rn", "m")


def load_builtin(kind: Literal["profiles", "suites"], name: str, section: type[S]) -> S:
    """Load a built-in file of `configs/<kind>` by name, or one of the user's by its path.

    Raises:
        UsageError: No such file, or it does not hold what a section holds.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else config_folder(kind) / f"{name}.yaml"
    with reading(name[:80], UsageError):  # such as a name that is too long for a file
        found = path.is_file()
    if own and not found:
        raise UsageError(f"{name}: no such file{suggest_path(path, '*.y*ml')}")
    if not found:
        known = [file.stem for file in config_folder(kind).glob("*.yaml")]
        raise UsageError(f"unknown {kind.removesuffix('s')} {name!r}; {suggest(name, known)}")
    values = load_file(path) if own else _load_once(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a mapping at the top")
    return valid_section(section, copy.deepcopy(values), path.name)
