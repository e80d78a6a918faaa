# SPDX-License-Identifier: Apache-2.0
"""Whether a run on the matched track has the recipe of its profile, as this version has it."""

from __future__ import annotations

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig


def off_recipe(config: RunConfig) -> list[str]:
    """Return the settings in which a run is not what its profile makes of its variant, options and pretraining.

    A record of another version may have another recipe under the same name, and so may one of an edited copy.

    Args:
        config: A run on the matched track, under a profile of this project.

    Raises:
        UsageError: The profile does not admit the configuration.
    """
    profile = load_profile(config.profile)
    options = {f"variant.{name}": value for name, value in config.variant.options.items()}
    train = {f"train.{name}": value for name, value in config.train.model_dump().items()}
    options |= {path: value for path, value in train.items() if profile.admits(path, value)}
    options["pretrain.share"] = 0.0 if config.pretrain is None else config.pretrain.share
    ours = resolve(task=config.task, variant=config.variant.name, profile=profile, seed=config.seed, overrides=options)
    theirs, recipe = ({"pretrain": None} | each.hashed() for each in (config, ours))
    return [
        f"{section}.{name}"
        for section in ("data", "model", "train", "pretrain")
        for mine, yours in [(recipe[section] or {}, theirs[section] or {})]
        for name in sorted({*mine, *yours})
        if yours.get(name) != mine.get(name)
    ]
