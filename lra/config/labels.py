# SPDX-License-Identifier: Apache-2.0
"""The names of rows: a variant, followed in brackets by what tells its runs from others in the same place.

The default of a variant is its bare name, everywhere. An option is named if it differs from the default. A setting that
is not the variant's, such as a learning rate, is named where runs under one heading differ in it. Compiled code, mixed
precision, pretraining, denoising and changed examples are named always.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lra.config.builtin import profile_names
from lra.config.schema import ADDED_LATER, VARIANT_POSITIONS, PretrainConfig, RunConfig, canonical_json, without_folder
from lra.errors import UsageError
from lra.names import legible

Settings = Mapping[str, Any]
"""Settings of one run by path: `variant.rank`, `model.num_layers`, `train.lr` ..."""


_ALWAYS_NAMED = {
    "train.compile": False,
    "train.padding": "bucketed",
    "train.precision": "float32",
    "train.augment": False,
    "train.crop": None,
    "train.denoise": 0.0,
}
"""How a run computes, and what it does to its inputs. Another value than this, or than that of the profile, is named in
every row, also where it is the same in all of them."""
EXECUTION = ("train.compile", "train.padding", "train.precision")
"""How a run computes; the matched track admits other values, and rows name them."""
NOT_IN_STEP = frozenset(
    {"train.augment", "train.crop", "train.denoise", *(f"pretrain.{name}" for name in PretrainConfig.model_fields)}
)
"""What a measured step does not have, whatever its profile has."""
_SIZES_OF_STEP = ("model.max_length", "train.batch_size", "train.accumulation")
"""What a measurement sets itself."""
_OF_START = {"start.weights", "start.steps"}
"""What follows from `start.from`, unless one run has several outcomes."""
NUMERICS = "numerics_version"
"""The version of this project's numerics, as a setting in the frame of runs."""
_PROGRAMS = ("model.pool_origin", NUMERICS)
"""Which program ran, beside what belongs to the variant: of a layer of a third party, and of this project."""
_NO_TEXTS = ("True", "False", "None")
_OF_TABLES = ("A5", "A6", "Chance", "Majority", "MLP only, trained", "the other")
"""Names that tables add; no task and no variant has such a name without its registered one behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A run that needs a name."""

    variant: str
    shown: str
    """What the name begins with: the name of the variant, or its title."""
    heading: str
    """Where it stands: runs under one heading are compared."""
    profile: str
    task: str
    """The profile may give options to variants on this task alone."""
    settings: Settings


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return everything that can change the number but task, profile, track and seed, by path.

    Options that the variant got after the run have the value that means "as before", see `ADDED_LATER`.
    """
    hashed = config.hashed()
    prefix = f"variant.{config.variant.name}."
    options = {path.removeprefix(prefix): value for path, value in ADDED_LATER.items() if path.startswith(prefix)}
    settings = {f"variant.{name}": value for name, value in (options | hashed["variant"]["options"]).items()}
    settings["variant.origin"] = config.variant.origin
    for section in ("data", "model", "train"):
        settings |= {f"{section}.{name}": value for name, value in hashed[section].items()}
    if config.task_origin:
        settings["task.origin"] = config.task_origin
    if config.start is not None:
        settings |= {
            "start.from": config.start.run[:12],
            "start.weights": config.start.weights[:12],
            "start.steps": config.start.steps,
        }
    return settings | _pretraining(config)


def named_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run as the names of rows have them: also how it computes and pretrains by default."""
    return _with_defaults(config.task, settings_of(config))


def _pretraining(config: RunConfig) -> dict[str, Any]:
    """Return the share of pretraining, and what else of denoising is not what the task has by default.

    The task of a third party is not loaded, so what it has by default is not left out.
    """
    if config.pretrain is None:
        return {}
    values = {f"pretrain.{name}": value for name, value in config.pretrain.model_dump().items()}
    usual = _denoising_defaults(config.task)
    return {name: value for name, value in values.items() if value != usual[name]}


@functools.cache
def _denoising_defaults(task: str) -> dict[str, Any]:
    """Return the settings of pretraining that a run on a task has by default; of a third party's, some are unknown."""
    from lra.tasks import get_task  # here, since it imports torch
    from lra.tasks import is_own as is_own_task

    usual = {f"pretrain.{name}": field.default for name, field in PretrainConfig.model_fields.items()}
    if is_own_task(task):
        info = get_task(task).info
        usual |= {"pretrain.mask_rate": info.mask_rate, "pretrain.loss": info.denoising_loss}
    return usual


def row_name(config: RunConfig, shown: str = "", leave_out: Collection[str] = ()) -> str:
    """Name a run alone: the variant, or what is shown for it, with the options that are not the default."""
    variant = config.variant.name
    row = Row(
        variant=variant,
        shown=shown or variant,
        heading="",
        profile=config.profile,
        task=config.task,
        settings=settings_of(config),
    )
    return row_names([row], leave_out)[0]


def differing(runs: Iterable[tuple[str, Settings]]) -> dict[str, set[str]]:
    """Return by variant which of its options and programs differ between runs, which are given with their settings."""
    by_variant: dict[str, list[Settings]] = {}
    for variant, settings in runs:
        by_variant.setdefault(variant, []).append(settings)
    return {
        variant: {name for name in varying(group) if _of_variant(name) or name in _PROGRAMS}
        for variant, group in by_variant.items()
    }


def names_in_command(configs: Sequence[RunConfig], titles: Sequence[str], leave_out: Collection[str] = ()) -> list[str]:
    """Name the runs of one command: the title of the variant, and its options that are not the default.

    The registered name follows the title, with the folder of a file, where another variant has this title.
    """
    owners = [config.variant.name for config in configs]
    titles = told_apart(titles, owners)
    return told_apart([row_name(*named, leave_out) for named in zip(configs, titles, strict=True)], owners)


def row_names(
    rows: Sequence[Row], leave_out: Collection[str] = (), elsewhere: Mapping[str, Collection[str]] | None = None
) -> list[str]:
    """Name rows, in their order.

    The programs of a variant (`_PROGRAMS` among them), and options whose defaults nobody knows, as of a variant that
    cannot be imported, are named where its rows differ in them, under whatever headings they stand: else one row would
    be of several variants.

    Args:
        rows: The runs that stand together.
        leave_out: Settings that are shown in another way.
        elsewhere: What differs between these and other runs, which stand in other tables: see `differing`.
    """
    by_heading: dict[str, list[Settings]] = {}
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        by_heading.setdefault(row.heading, []).append(row.settings)
        by_variant.setdefault(row.variant, []).append(row)
    recipe = {
        heading: {name for name in varying(group) if not _of_variant(name)} - _OF_START
        for heading, group in by_heading.items()
    }
    shared = {variant: set().union(*(recipe[row.heading] for row in group)) for variant, group in by_variant.items()}
    own = {
        variant: found | set((elsewhere or {}).get(variant, ()))
        for variant, found in differing((row.variant, row.settings) for row in rows).items()
    }
    names = []
    for row in rows:
        settings = _with_defaults(row.task, row.settings)
        named = departures(row.variant, row.profile, row.task, row.settings)
        compared = {name for name in row.settings if not (name.startswith("pretrain.") or name in _ALWAYS_NAMED)}
        named |= compared & shared[row.variant]
        named |= {name for name in compared if name.startswith("start.") and name not in _OF_START}
        known = default_options(row.variant, row.profile, row.task, str(row.settings.get("model.positions"))).keys()
        ours = {"variant.origin"} if not row.settings.get("variant.origin") else set[str]()
        named |= compared & own[row.variant] - known - ours  # the program is no option, so it counts of all plug-ins
        shown = [name for name in sorted(named) if name not in leave_out]
        text = ", ".join(f"{short_name(name)}={shown_value(settings[name])}" for name in shown)
        names.append(f"{row.shown} [{text}]" if text else row.shown)
    return told_apart(_settings_apart(rows, names, leave_out), [row.variant for row in rows])


def departures(variant: str, profile: str, task: str, settings: Settings) -> set[str]:
    """Return the settings in which a run is not as its profile has it on its task: by path.

    These are options of the variant, pretraining, how a run computes, and what it does to its inputs. Of a profile that
    is not built in, the defaults of this project stand in its place.
    """
    options = default_options(variant, profile, task, str(settings.get("model.positions")))
    here = _with_defaults(task, settings)
    usual = _usual(profile, task, here)
    # Of a run that denoises nothing, only that counts, and not how it would.
    denoises = here["pretrain.share"] or here["train.denoise"]
    names = {*_ALWAYS_NAMED, *(_denoising_defaults(task) if denoises else ["pretrain.share"])}
    return {name for name in names if here[name] != usual[name]} | {
        name for name, value in settings.items() if name in options and _text(value) != options[name]
    }


def _usual(profile: str, task: str, here: Settings) -> dict[str, Any]:
    """Return the settings that a profile has on a task, and the padding that follows where a run is compiled."""
    usual = _with_defaults(task, _recipe_of(profile, task))
    if here["train.compile"] and usual["train.padding"] == "bucketed":
        usual["train.padding"] = "coarse"
    return usual


def usual_elsewhere(variant: str, profile: str, task: str, settings: Settings) -> dict[str, list[str]]:
    """Return which settings of a run are not those of its profile on its task, but on others, and on which.

    Runs with them there have the bare name.

    Returns:
        Tasks by setting, such as `window=64`.
    """
    from lra.config.profiles import load_profile  # here, since it imports torch

    found: dict[str, list[str]] = {}
    if profile in profile_names():
        positions = str(settings.get("model.positions"))
        for name in departures(variant, profile, task, settings):
            value = _with_defaults(task, settings)[name]
            for other in load_profile(profile).tasks:
                options = default_options(variant, profile, other, positions)
                same = (
                    options.get(name) == _text(value)
                    if _of_variant(name)
                    else _usual(profile, other, _with_defaults(task, settings))[name] == value
                )
                if same:
                    found.setdefault(f"{short_name(name)}={shown_value(value)}", []).append(other)
    return found


def _with_defaults(task: str, settings: Settings) -> dict[str, Any]:
    return _ALWAYS_NAMED | _denoising_defaults(task) | dict(settings)


def told_apart(names: Sequence[str], owners: Sequence[str]) -> list[str]:
    """Add the owner to each name that another owner, or a table itself, has too: a title is free text.

    Args:
        names: What is shown,
        owners: and the registered name of what it is shown for, in the same order.
    """
    holders: dict[str, set[str]] = {word: {""} for word in _OF_TABLES}
    for name, owner in zip(names, owners, strict=True):
        holders.setdefault(name, set()).add(owner)
    if all(len(found) == 1 for found in holders.values()):
        return list(names)
    longer = [
        f"{name} ({owner})" if len(holders[name]) > 1 else name for name, owner in zip(names, owners, strict=True)
    ]
    return told_apart(longer, owners)


def profiles_of_steps(configs: Sequence[RunConfig]) -> list[str]:
    """Name the profiles of measured steps, each followed in brackets by the settings that are not its own.

    Of a profile that is not built in, nothing is known. Settings are also named where steps that differ in them still
    have one name. Lengths and batches stand elsewhere.
    """
    steps = [_settings_of_step(config) for config in configs]
    named = [_not_of_profile(config, settings) for config, settings in zip(configs, steps, strict=True)]
    places = [
        (without_folder(config.task), config.profile, in_words(settings, names))
        for config, settings, names in zip(configs, steps, named, strict=True)
    ]
    together: dict[tuple[str, str, str], list[Settings]] = {}
    for place, settings in zip(places, steps, strict=True):
        together.setdefault(place, []).append(settings)
    apart = {place: varying(group) for place, group in together.items()}
    texts = [
        in_words(settings, sorted({*names, *apart[place]}))
        for place, settings, names in zip(places, steps, named, strict=True)
    ]
    return [
        f"{config.profile} [{text}]" if text else config.profile for config, text in zip(configs, texts, strict=True)
    ]


def _settings_of_step(config: RunConfig) -> Settings:
    """Return all settings of a measured step, defaults included, but for its variant, length and batch."""
    sections = config.model_dump(include={"data", "model", "train"})
    written = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    return {
        name: value
        for name, value in (settings_of(config) | written).items()
        if not _of_variant(name) and name not in _SIZES_OF_STEP and not (name.startswith("data.") and "length" in name)
    }


def _not_of_profile(config: RunConfig, settings: Settings) -> list[str]:
    """List the settings of a step in which it is not as its profile, and those that are named always."""
    usual = _recipe_of(config.profile, config.task)
    named = {name for name, value in _ALWAYS_NAMED.items() if settings.get(name, value) != value}
    if usual:
        named |= {name for name, value in settings.items() if name not in usual or usual[name] != value}
    return sorted(named)


@functools.cache
def _recipe_of(profile: str, task: str) -> Settings:
    """Return the settings of a step as a built-in profile has it for a task; empty where that is not known."""
    from lra.config.profiles import load_profile  # here, since it imports torch
    from lra.config.resolve import resolve
    from lra.tasks import is_own as is_own_task

    if profile not in profile_names() or not is_own_task(task):
        return {}
    try:
        config = resolve(task=task, variant="full", profile=load_profile(profile), seed=0, track="open", overrides={})
    except UsageError:  # such as that the profile does not define the task
        return {}
    return _settings_of_step(config)


def _settings_apart(rows: Sequence[Row], names: Sequence[str], leave_out: Collection[str]) -> list[str]:
    """Add the settings by their whole paths wherever runs that differ in them still have one name under a heading.

    This happens if an option of a variant has the name of another setting, or if one run has several outcomes.
    """
    together: dict[tuple[str, str, str], list[Settings]] = {}
    for row, name in zip(rows, names, strict=True):
        kept = {path: value for path, value in row.settings.items() if path not in leave_out}
        together.setdefault((row.variant, row.heading, name), []).append(kept)
    apart = {key: varying(group) for key, group in together.items()}
    return [
        f"{name} ({', '.join(f'{path}={shown_value(row.settings.get(path))}' for path in paths)})" if paths else name
        for row, name in zip(rows, names, strict=True)
        for paths in [apart[row.variant, row.heading, name]]
    ]


@functools.cache
def default_options(variant: str, profile: str, task: str, positions: str) -> dict[str, str]:
    """Return the options that a variant has if none is set, by path and as text; empty if it cannot be imported.

    Args:
        variant: Its name.
        profile: A built-in profile may give options to variants,
        task: and others on this task.
        positions: Those of the model; some are an option of the variant.
    """
    from attention_zoo.registry import get_variant, is_known  # here, since it imports torch
    from lra.config.profiles import load_profile
    from lra.tasks import is_own as is_own_task

    if not is_known(variant):
        return {}
    try:
        recipes = load_profile(profile) if profile in profile_names() else None
        options: dict[str, Any] = {}
        if recipes is not None:  # none of ours has a task of a third party, which is not loaded
            options = recipes.options(variant, task) if is_own_task(task) else recipes.variants.get(variant, {})
        typed = get_variant(variant).config.from_dict(
            dict([VARIANT_POSITIONS[positions]] if positions in VARIANT_POSITIONS else []) | options
        )
    except Exception:  # noqa: BLE001 - whatever another's plug-in raises: a table of records does without it
        return {}
    return {f"variant.{name}": _text(value) for name, value in typed.to_dict().items()}


def varying(group: Iterable[Settings]) -> list[str]:
    """List the settings that do not have the same value in all runs; an absent setting counts as a value."""
    values: dict[str, set[str]] = {}
    holders: Counter[str] = Counter()
    size = 0
    for settings in group:
        size += 1
        holders.update(list(settings))
        for name, value in settings.items():
            values.setdefault(name, set()).add(_text(value))
    return sorted(name for name, found in values.items() if len(found) > 1 or holders[name] < size)


def short_name(setting: str) -> str:
    """Return the name of a setting without its section."""
    return setting.partition(".")[2] or setting


def in_words(settings: Settings, names: Iterable[str]) -> str:
    """Write settings by their short names, such as `causal=True, norm=rms`."""
    return ", ".join(
        f"{short_name(name)}={shown_value(settings[name]) if name in settings else '(absent)'}" for name in names
    )


def split_row(text: str) -> tuple[str, str]:
    """Split what a user typed for a row into the name of the variant and the settings in brackets, without them."""
    name, _, settings = text.partition(" [")
    return name.strip(), settings.strip().removesuffix("]")


_SETTING = r'\w+=(?:"(?:\\.|[^"\\])*"|.*?)(?=,\s*\w+=|$)'
"""One of the settings that a user typed, in quotes where its value has a comma."""


def fits(settings: Settings, text: str) -> bool:
    """Say whether a run has the settings that a user typed, such as `window=4, rotary=True`; an empty text fits all.

    A short name that the data share with the model, such as `max_length`, means that of the model.
    """
    ours = {short_name(name) for name in settings if not name.startswith("data.")}
    written = {
        f"{short_name(name)}={shown_value(value)}"
        for name, value in settings.items()
        if not (name.startswith("data.") and short_name(name) in ours)
    }
    parts = re.findall(_SETTING, text.strip())
    return not re.sub(_SETTING, "", text.strip()).strip(", ") and all(part in written for part in parts)


def names_no_more(row: str, settings: Settings, text: str) -> bool:
    """Say whether the name of a row has no option of the variant, and no pretraining, that a text does not have.

    A name without options stands for the default ones. What is not the variant's does not matter, nor does the version
    of the numerics.
    """
    beside = {
        f"{short_name(name)}={shown_value(value)}"
        for name, value in settings.items()
        if not name.startswith(("variant.", "pretrain."))
    }
    return set(re.findall(_SETTING, split_row(row)[1])) <= beside | set(re.findall(_SETTING, text.strip()))


def _of_variant(setting: str) -> bool:
    return setting.startswith("variant.")


def shown_value(value: Any) -> str:
    """Write a value for a name; text in quotes where it could be taken for another value, or for several."""
    plain = not isinstance(value, str) or (re.fullmatch(r"[A-Za-z][\w./:+-]*", value) and value not in _NO_TEXTS)
    text = str(value) if plain else json.dumps(value, ensure_ascii=False)
    return text if text == legible(text) else json.dumps(value).replace("  ", r" \u0020")


def _text(value: Any) -> str:
    return canonical_json(value).decode()
