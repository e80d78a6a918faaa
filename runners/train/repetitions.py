# SPDX-License-Identifier: Apache-2.0
"""Which runs of one command with `--force` have ended: after a stop, the same command goes on behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lra.atomic_io import atomic_write
from lra.config.schema import canonical_json
from lra.errors import DamagedFileError, StoreError, refusals_as
from lra.reading import is_there, reading
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import Store
from lra.terminal import echo

SCHEMA_VERSION = 1


class Repetitions:
    """The runs that a command repeats. Which have ended is kept in the store until all have.

    Args:
        store: Where their records are.
        run_ids: All of them.
        environment: Where they are repeated, see `describe_environment`; elsewhere they are repeated anew.
    """

    def __init__(self, store: Store, run_ids: Sequence[str], environment: Mapping[str, Any]) -> None:
        series = hashlib.sha256(canonical_json([list(run_ids), dict(environment)])).hexdigest()
        self._file = store.root / "checkpoints" / f"again-{series[:16]}.json"
        self.ended: set[str] = set()
        """Run ids."""
        try:
            if is_there(self._file, StoreError):
                body = read_envelope(self._file, "repetitions", SCHEMA_VERSION)
                with reading(self._file, DamagedFileError):
                    self.ended = set(run_ids) & set(body["ended"])
        except DamagedFileError as error:
            echo(f"{error}; passed over", err=True)

    def add(self, run_id: str) -> None:
        """Note that a run has ended."""
        self.ended.add(run_id)
        body = {"schema_version": SCHEMA_VERSION, "ended": sorted(self.ended)}
        with refusals_as(StoreError, f"cannot write {self._file}"):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._file, pack_envelope("repetitions", body))

    def finish(self) -> None:
        """Forget all, since the next command with `--force` begins anew."""
        with refusals_as(StoreError, f"cannot remove {self._file}"):
            self._file.unlink(missing_ok=True)
