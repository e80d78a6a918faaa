"""Move a store of results from schema 1 to schema 2: new names of fields, and ids without this project's version.

    python -m benchmarks.migrate_store STORE

Each file is read, written again under its new id, read back and compared; only then is the old one removed. A file that
does not say the same afterwards stops the migration. Files of schema 2 are left alone, so it can be run again. A
measurement keeps its id where that cannot be worked out again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from attention_zoo import get_variant
from lra.atomic_io import atomic_write
from lra.config.schema import RunConfig
from lra.results.bench_records import read_bench_record, settings_id, upgrade_bench_record
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import SCHEMA_VERSION, Store, read_record


def migrate_run(store: Store, path: Path) -> bool:
    """Migrate one record and its arrays; return whether there was anything to do."""
    old = read_envelope(path, "record", SCHEMA_VERSION)
    if old["schema_version"] == SCHEMA_VERSION:
        return False
    record = read_record(path)
    title = get_variant(record.config.variant.name).title
    record = record.model_copy(update={"run_id": record.config.run_id(record.data_digest), "variant_title": title})
    arrays = store.arrays_path(old["cell_id"]).read_bytes()
    atomic_write(store.arrays_path(record.run_id), arrays)
    atomic_write(store.record_path(record.run_id), pack_envelope("record", record.model_dump()))

    new = read_envelope(store.record_path(record.run_id), "record", SCHEMA_VERSION)
    names = {"run_id": "cell_id", "dataset": "data_edition", "baselines": "rails"}
    back = {names.get(name, name): value for name, value in new.items()}
    del back["variant_title"]
    check_same(path, old, back, may_differ=("cell_id", "schema_version"))
    if store.arrays_path(record.run_id).read_bytes() != arrays or not store.arrays(record.run_id):
        raise SystemExit(f"{path}: its arrays are not the same afterwards")
    if record.run_id != old["cell_id"]:
        path.unlink()
        store.arrays_path(old["cell_id"]).unlink()
        for folder in (path.parent, store.arrays_path(old["cell_id"]).parent):
            if not any(folder.iterdir()):
                folder.rmdir()
    return True


def migrate_measurement(path: Path) -> bool:
    """Migrate one file of `lra-bench`; return whether there was anything to do."""
    old = read_envelope(path, "bench", SCHEMA_VERSION)
    if old["schema_version"] == SCHEMA_VERSION:
        return False
    record = read_bench_record(path)
    on = {"device": old["environment"]["cpu"], "threads": record.threads, "memory_limit": None}
    if (
        settings_id(RunConfig.model_validate(old["config"]), **on) == record.settings_id
    ):  # else it was on something else
        record = record.model_copy(update={"settings_id": settings_id(record.config, **on)})
    target = path.with_name(f"{record.settings_id}.json")
    record = record.model_copy(update={"variant_title": get_variant(record.config.variant.name).title})
    atomic_write(target, pack_envelope("bench", record.model_dump()))
    check_same(
        path,
        upgrade_bench_record(old),
        read_envelope(target, "bench", SCHEMA_VERSION),
        ("settings_id", "variant_title"),
    )
    if target != path:
        path.unlink()
    return True


def check_same(path: Path, old: dict[str, Any], new: dict[str, Any], may_differ: tuple[str, ...]) -> None:
    """Stop unless two bodies are equal but for the named fields and our own version in the origin of a variant."""
    old, new = (json.loads(json.dumps(body)) for body in (old, new))
    for body in (old, new):
        variant = body["config"]["variant"]
        if variant["origin"].startswith("lra-harness "):
            variant["origin"] = ""
        for name in may_differ:
            body.pop(name)
    if old != new:
        names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        raise SystemExit(f"{path}: {', '.join(sorted(names))} would not be the same afterwards")


def main() -> None:
    """Migrate the store that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    store = Store(parser.parse_args().store)
    runs = sorted((store.root / "results").glob("*/*.json"))
    moved = sum(migrate_run(store, path) for path in runs)
    files = sorted((store.root / "bench").glob("*.json"))
    benches = sum(migrate_measurement(path) for path in files)
    print(f"{moved} of {len(runs)} records and {benches} of {len(files)} measurements migrated")


if __name__ == "__main__":
    sys.exit(main())
