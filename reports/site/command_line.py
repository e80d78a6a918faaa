# SPDX-License-Identifier: Apache-2.0
"""The command that repeats a run."""

from __future__ import annotations

import functools
import json
import shlex
from typing import Any

from attention_zoo.registry import is_own
from lra.config.builtin import profile_names
from lra.config.labels import settings_of
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.errors import UsageError
from lra.models.downsamplers import is_own as is_own_layer
from lra.tasks import is_own as is_own_task

FILLED_IN = ("model.pool_origin", "variant.origin")
_load_once = functools.cache(load_profile)


def repeat_command(config: RunConfig) -> str:
    """Return the shortest `lra-run` that leads to a configuration; empty if no command does here.

    The recipe may be another one than when the run was made. A variant or task of a third party is not loaded.
    """
    own = is_own(config.variant.name, config.variant.options) and is_own_layer(config.model.pool)
    if config.profile not in profile_names() or not own or not is_own_task(config.task):
        return ""
    changed = _changed(config.model_copy(update={"seed": 0}).model_dump_json())
    if changed is None:
        return ""
    words = ["lra-run", "--attn", config.variant.name, "--task", config.task, "--profile", config.profile]
    words += ["--seeds", str(config.seed)] if config.seed else []
    words += ["--track", config.track] if config.track != "matched" else []
    for name, value in changed.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


@functools.cache  # once for all seeds
def _changed(dumped: str) -> dict[str, Any] | None:
    """Return the settings in which a configuration differs from its profile, or None if they do not lead to it."""
    config = RunConfig.model_validate_json(dumped)
    profile = _load_once(config.profile)
    place = {"task": config.task, "variant": config.variant.name, "seed": config.seed, "track": config.track}
    try:
        made = resolve(**place, profile=profile, overrides={})  # type: ignore[arg-type]
        plain, wanted = settings_of(made), settings_of(config)
        changed = {name: value for name, value in wanted.items() if name not in FILLED_IN and plain.get(name) != value}
        if changed:
            made = resolve(**place, profile=profile, overrides=changed)  # type: ignore[arg-type]
    except UsageError:
        return None
    return changed if made.key() == config.key() else None
