"""Move a store of results from schema 1 to schema 2: new names of fields, and ids without this project's version.

    python -m benchmarks.migrate_store STORE

Each file is read and compared with what would be written. A file that would not say the same stops the migration. The
new file is then written under its new id and read back, and only then is the old one removed. Files of schema 2 are
left alone, so the migration can be run again. So is a file whose new id is taken by another outcome, and a measurement
whose id cannot be recomputed: it was made under a limit on memory, which schema 1 did not keep, and no reader believes
it.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from attention_zoo import get_variant
from lra.atomic_io import atomic_write
from lra.errors import DamagedFileError
from lra.names import rename_fields
from lra.results.bench_records import BENCH_SCHEMA_VERSION, read_bench_record, settings_id, upgrade_bench_record
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import SCHEMA_VERSION, Store, read_record
from lra.results.upgrades import RENAMED_IN_SCHEMA_2


def migrate_run(store: Store, path: Path) -> bool:
    """Migrate one record and its arrays; return whether there was anything to do."""
    old = read_envelope(path, "record", SCHEMA_VERSION)
    if old["schema_version"] == SCHEMA_VERSION:
        return False
    record = read_record(path)
    title = get_variant(record.config.variant.name).title
    record = record.model_copy(
        update={"run_id": record.config.run_id(record.data_digest, record.numerics_version), "variant_title": title}
    )
    new = plain(record)
    back = rename_fields(new, {new: old for old, new in RENAMED_IN_SCHEMA_2.items()})
    del back["variant_title"]
    check_same(path, old, back, may_differ=("cell_id", "schema_version"))

    if taken(store.record_path(record.run_id), "record", new):
        print(f"left alone: {path}, as {store.record_path(record.run_id)} is the same run, made again")
        return False
    arrays = store.arrays_path(old["cell_id"]).read_bytes()
    atomic_write(store.arrays_path(record.run_id), arrays)
    write_and_read_back(store.record_path(record.run_id), "record", new)
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
    old = read_envelope(path, "bench", BENCH_SCHEMA_VERSION)
    if old["schema_version"] != 1:
        return False
    try:
        record = read_bench_record(path)
    except DamagedFileError as error:
        print(f"left alone: {error}")
        return False
    own_id = settings_id(record.config, device=record.processor, threads=record.threads, memory_limit=None)
    record = record.model_copy(update={"settings_id": own_id})
    record = record.model_copy(update={"variant_title": get_variant(record.config.variant.name).title})
    new = plain(record)
    check_same(path, upgrade_bench_record(old), new, may_differ=("settings_id", "variant_title"))
    target = path.with_name(f"{record.settings_id}.json")
    if taken(target, "bench", new):
        print(f"left alone: {path}, as {target} has the same settings, measured again")
        return False
    write_and_read_back(target, "bench", new)
    if target != path:
        path.unlink()
    return True


def plain(record: BaseModel) -> dict[str, Any]:
    """Return a record as the plain values that its JSON file would hold."""
    body: dict[str, Any] = json.loads(record.model_dump_json())
    return body


def taken(path: Path, kind: str, body: dict[str, Any]) -> bool:
    """Say whether a file is there already, and of the new schema with another body."""
    if not path.exists():
        return False
    there = read_envelope(path, kind, body["schema_version"])
    return bool(there["schema_version"] == body["schema_version"] and there != body)


def write_and_read_back(path: Path, kind: str, body: dict[str, Any]) -> None:
    """Write a body into its envelope, and stop unless the same comes back."""
    atomic_write(path, pack_envelope(kind, body))
    if read_envelope(path, kind, body["schema_version"]) != body:
        raise SystemExit(f"{path}: it does not hold what was written")


def check_same(path: Path, old: dict[str, Any], new: dict[str, Any], may_differ: tuple[str, ...]) -> None:
    """Stop unless two bodies are equal but for the named fields and our own version in the origin of a variant."""
    old, new = copy.deepcopy(old), copy.deepcopy(new)
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
