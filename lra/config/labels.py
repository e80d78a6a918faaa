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
from lra.config.schema import ADDED_LATER, VARIANT_POSITIONS, RunConfig, canonical_json

Settings = Mapping[str, Any]
"""Settings of one run by path: `variant.rank`, `model.num_layers`, `train.lr` ..."""


_ALWAYS_NAMED = {
    "train.compile": False,
    "train.precision": "float32",
    "train.augment": False,
    "train.crop": None,
    "train.denoise": 0.0,
}
"""How a run computes, and what it does to its inputs. Another value than this is named in every row, also where it is
the same in all of them."""
_NO_TEXTS = ("True", "False", "None")


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
    if config.start is not None:
        settings["start.from"] = config.start.run[:12]
    return settings | _pretraining(config)


def _pretraining(config: RunConfig) -> dict[str, Any]:
    """Return the share of pretraining, and what else of denoising is not what the task has by default."""
    from lra.config.resolve import pretraining  # here, since it imports torch
    from lra.tasks import get_task

    if config.pretrain is None:
        return {}
    share = config.pretrain.share
    default, _ = pretraining(get_task(config.task).info, {"share": share}, beside=True)
    assert default is not None
    values, defaults = config.pretrain.model_dump(), default.model_dump()
    return {f"pretrain.{name}": value for name, value in values.items() if value != defaults[name]} | (
        {"pretrain.share": share} if share else {}
    )


def row_name(config: RunConfig, shown: str = "") -> str:
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
    return row_names([row])[0]


def row_names(rows: Sequence[Row], leave_out: Collection[str] = ()) -> list[str]:
    """Name rows, in their order.

    Of a variant that cannot be imported, or only in another version, the options are named in which its rows differ.

    Args:
        rows: The runs that stand together.
        leave_out: Settings that are shown in another way.
    """
    by_heading: dict[str, list[Settings]] = {}
    by_variant: dict[tuple[str, str], list[Settings]] = {}
    for row in rows:
        by_heading.setdefault(row.heading, []).append(row.settings)
        by_variant.setdefault((row.variant, row.heading), []).append(row.settings)
    recipe = {heading: set(varying(group)) for heading, group in by_heading.items()}
    shared: dict[str, set[str]] = {}
    own: dict[str, set[str]] = {}
    for (variant, heading), group in by_variant.items():
        shared.setdefault(variant, set()).update(name for name in recipe[heading] if not _of_variant(name))
        own.setdefault(variant, set()).update(name for name in varying(group) if _of_variant(name))
    names = []
    for row in rows:
        defaults = default_options(row.variant, row.profile, row.task, str(row.settings.get("model.positions")))
        named = shared[row.variant] | {
            name
            for name in row.settings
            if name.startswith(("pretrain.", "start."))
            or (
                _of_variant(name)
                and (name in own[row.variant] if name not in defaults else _text(row.settings[name]) != defaults[name])
            )
        }
        named |= {name for name, usual in _ALWAYS_NAMED.items() if row.settings.get(name, usual) != usual}
        shown = [name for name in sorted(named) if name in row.settings and name not in leave_out]
        text = ", ".join(f"{short_name(name)}={shown_value(row.settings[name])}" for name in shown)
        names.append(f"{row.shown} [{text}]" if text else row.shown)
    return _apart(rows, names)


def _apart(rows: Sequence[Row], names: list[str]) -> list[str]:
    """Add the registered name wherever two variants have one name: a title is free text, and may be another's row."""
    holders: dict[str, set[str]] = {}
    for row, name in zip(rows, names, strict=True):
        holders.setdefault(name, set()).add(row.variant)
    if all(len(variants) == 1 for variants in holders.values()):
        return names
    longer = [
        f"{name} ({row.variant})" if len(holders[name]) > 1 else name for row, name in zip(rows, names, strict=True)
    ]
    return _apart(rows, longer)


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

    if not is_known(variant):
        return {}
    try:
        options = load_profile(profile).options(variant, task) if profile in profile_names() else {}
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
            values.setdefault(name, set()).add(repr(value))
    return sorted(name for name, found in values.items() if len(found) > 1 or holders[name] < size)


def short_name(setting: str) -> str:
    """Return the name of a setting without its section."""
    return setting.partition(".")[2] or setting


def split_row(text: str) -> tuple[str, str]:
    """Split what a user typed for a row into the name of the variant and the settings in brackets, without them."""
    name, _, settings = text.partition(" [")
    return name.strip(), settings.strip().removesuffix("]")


def fits(settings: Settings, text: str) -> bool:
    """Say whether a run has the settings that a user typed, such as `window=4, rotary=True`; an empty text fits all."""
    written = {f"{short_name(name)}={shown_value(value)}" for name, value in settings.items()}
    return all(part in written for part in re.findall(r'\w+=(?:"(?:\\.|[^"\\])*"|.*?)(?=,\s*\w+=|$)', text.strip()))


def _of_variant(setting: str) -> bool:
    return setting.startswith("variant.")


def shown_value(value: Any) -> str:
    """Write a value for a name; text in quotes where it could be taken for another value, or for several."""
    plain = not isinstance(value, str) or (re.fullmatch(r"[A-Za-z][\w./:+-]*", value) and value not in _NO_TEXTS)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    return canonical_json(value).decode()
