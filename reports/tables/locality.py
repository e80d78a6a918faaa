# SPDX-License-Identifier: Apache-2.0
"""The table of locality: how far the models of some runs mix."""

from __future__ import annotations

from pathlib import Path

import torch

from lra.config.labels import row_name
from lra.data.batching import collate
from lra.errors import UsageError
from lra.measure.locality import Mixing, influence, mixing
from lra.models.transformer import Classifier
from lra.results.records import RunRecord
from lra.trained import TrainedRun

from ..result_set import ResultSet
from .captions import preview
from .table import Table, Term, plain_table

PROBES = 4
"""Random vectors for each token that is read."""


def measure(run: TrainedRun, data_dir: Path | None, examples: int, places: int) -> Mixing:
    """Measure how far the chosen weights of a run mix, on test examples.

    Args:
        run: The run.
        data_dir: Folder of prepared data; None means the default one.
        examples: Number of test examples, evenly spaced in the split.
        places: Tokens of each whose state is read: evenly spaced, the first among them.

    Raises:
        UsageError: The model is not a transformer of this project, or its task has pairs.
    """
    model, record = run.model(), run.record
    if not isinstance(model, Classifier):
        raise UsageError(f"run {record.run_id[:12]} is of a model that has no blocks to look into")
    split = run.data(data_dir).split("test")
    if split.documents > 1:
        raise UsageError(f"run {record.run_id[:12]} is of a task of pairs")
    prefix = int(record.config.model.pooling == "cls")
    generator = torch.Generator().manual_seed(0)
    distances, weights = [], []
    for index in torch.linspace(0, len(split) - 1, min(examples, len(split))).long().tolist():
        batch = collate(split, [index], None, record.config.model.max_length, torch.device("cpu"))
        length = int(split.lengths[index])
        for place in sorted(set(torch.linspace(0, length - 1, places).long().tolist())):
            found = influence(model, batch.tokens, batch.mask, place + prefix, PROBES, generator)
            distances.append((torch.arange(length) - place).abs())
            weights.append(found[prefix : prefix + length])
    return mixing(torch.cat(distances), torch.cat(weights))


def locality(
    results: ResultSet, records: list[RunRecord], data_dir: Path | None, *, examples: int, places: int
) -> Table:
    """Tabulate how far runs mix.

    Raises:
        UsageError: See `measure`.
    """
    rows = []
    for record in records:
        found = measure(TrainedRun(record=record, store=results.stores[record.run_id]), data_dir, examples, places)
        rows.append(
            {
                "task": record.task_title,
                "variant": row_name(record.config, record.variant_title),
                "seed": str(record.config.seed),
                "mean distance": f"{found.mean:.2f}",
                "median": str(found.median),
                "90 %": str(found.most),
                "farthest": str(found.farthest),
                "of": str(found.reach),
            }
        )
    ids = {record.run_id for record in records}
    frame = results.frame()
    frame = frame[frame["run_id"].isin(ids)]
    notes: list[str] = [
        Term("Distance: in tokens, between a token and those that its final state depends on, weighted by influence."),
        Term("Influence: squared norm of the Jacobian, estimated with random signs."),
        Term("Farthest: the largest distance with any influence; of: the largest that was looked at."),
    ]
    caption = f"How far the chosen weights mix, on {examples} test examples with {places} tokens of each"
    return plain_table(caption, rows, preview(frame) + notes, frame)
