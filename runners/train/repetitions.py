# SPDX-License-Identifier: Apache-2.0
"""Which runs of one command with `--force` have ended: after a stop, the same command goes on behind them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lra.atomic_io import atomic_write
from lra.config.schema import canonical_json
from lra.errors import DamagedFileError, StoreError, refusals_as
from lra.reading import is_there, read_file, reading
from lra.results.envelope import MAX_BYTES, pack_envelope, read_envelope
from lra.results.records import Store
from lra.terminal import echo

SCHEMA_VERSION = 1


class Repetitions:
    """The runs that a command repeats. Which have ended is kept in the store until all have.

    Args:
        store: Where their records are.
        run_ids: All of them.
        environment: Where they are repeated, see `lra.measure.environment.decisive`; elsewhere they are repeated anew.
    """

    def __init__(self, store: Store, run_ids: Sequence[str], environment: Mapping[str, Any]) -> None:
        self._store = store
        self._series = hashlib.sha256(canonical_json([list(run_ids), dict(environment)])).hexdigest()
        self._file = store.root / "checkpoints" / f"again-{self._series[:16]}.json"
        self._records: dict[str, str] = {}
        """Run id -> SHA-256 of the record with which a repetition was compared."""
        try:
            if is_there(self._file, StoreError):
                body = read_envelope(self._file, "repetitions", SCHEMA_VERSION)
                with reading(self._file, DamagedFileError):
                    if body["series"] != self._series:
                        raise DamagedFileError(f"{self._file} is of another command")
                    self._records = dict(body["records"])
        except DamagedFileError as error:
            echo(f"{error}; passed over", err=True)

    def ended(self, run_id: str) -> bool:
        """Say whether a run has been compared with its record as it is now."""
        return run_id in self._records and self._records[run_id] == self._digest(run_id)

    def add(self, run_id: str) -> None:
        """Note that a run has ended."""
        self._records[run_id] = self._digest(run_id)
        body = {"schema_version": SCHEMA_VERSION, "series": self._series, "records": self._records}
        with refusals_as(StoreError, f"cannot write {self._file}"):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._file, pack_envelope("repetitions", body))

    def _digest(self, run_id: str) -> str:
        with contextlib.suppress(StoreError):  # it is damaged or gone, which the run will say
            return hashlib.sha256(read_file(self._store.record_path(run_id), MAX_BYTES, StoreError)).hexdigest()
        return ""

    def finish(self) -> None:
        """Forget all, since the next command with `--force` begins anew."""
        with refusals_as(StoreError, f"cannot remove {self._file}"):
            self._file.unlink(missing_ok=True)
