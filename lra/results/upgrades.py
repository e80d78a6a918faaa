# SPDX-License-Identifier: Apache-2.0
"""Records of older schemas, in the terms of the current one."""

from __future__ import annotations

from typing import Any

from lra.names import rename_fields

RENAMED_IN_SCHEMA_2 = {"cell_id": "run_id", "data_edition": "dataset", "rails": "baselines"}


def upgrade_record(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a record in the current schema.

    Schema 1 had other names for three fields, and the version of this project in the origin of its own variants. The id
    of a run hashed that version, so a record of schema 1 keeps an id of its own until `benchmarks.migrate_store` has
    renamed it.
    """
    if body["schema_version"] != 1:
        return body
    body = rename_fields(body, RENAMED_IN_SCHEMA_2)
    config = without_own_version(body["config"])
    return body | {"schema_version": 2, "config": config, "variant_title": title_from_name(config["variant"]["name"])}


def title_from_name(name: str) -> str:
    """Return a name to show for a variant whose own title is not known here."""
    return name.replace("_", " ").capitalize()


def without_own_version(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of schema 1 without the version of this project in the origin of its own variants."""
    variant = config["variant"]
    own = variant["origin"].startswith("lra-harness ")
    return config | {"variant": variant | {"origin": ""}} if own else config
