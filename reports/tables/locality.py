# SPDX-License-Identifier: Apache-2.0
"""The tables of locality: how far the models of some runs mix, and what they answer when they see no farther."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lra.config.schema import RunConfig
from lra.data.batching import Batch, collate
from lra.data.split import Split
from lra.errors import UsageError
from lra.measure.locality import Change, Mixing, influence, logits_within, mixing
from lra.models.padding import hide_padding
from lra.models.precision import autocast
from lra.models.transformer import Classifier, mixers
from lra.results.dataframe import record_frame
from lra.results.records import RunRecord
from lra.tasks import info_of
from lra.trained import TrainedRun

from .captions import preview, provenance_notes
from .table import Table, Term, plain_table

DONE: dict[Change, str] = {"hide": "hidden", "shuffle": "shuffled"}
"""What was done to far tokens, in words."""
PROBES = 4
"""Random vectors for each token that is read."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was measured of one run."""

    mixing: Mixing
    sigma: list[float]
    """The mean width of pooling in each layer, in tokens; empty if the variant has none."""
    influences: Tensor
    """(tokens, tokens), of each column on each row, in the first example; its rows are the tokens that were read."""


class Looked:
    """A trained model, and test examples to look at.

    Args:
        run: The run.
        data_dir: Folder of prepared data; None means the default one.

    Raises:
        UsageError: The model is not a transformer of this project, or its task has pairs.
    """

    def __init__(self, run: TrainedRun, data_dir: Path | None) -> None:
        model, self.name = run.model(), f"run {run.record.run_id[:12]}"
        if not isinstance(model, Classifier):
            raise UsageError(f"{self.name} is of a model that has no blocks to look into")
        self.model: Classifier = model
        self.split: Split = run.data(data_dir).split("test")
        if self.split.documents > 1:
            raise UsageError(f"{self.name} is of a task of pairs")
        self.config, self.precision = run.record.config.model, run.record.config.train.precision
        self.padded_length = run.record.config.padded_length

    def batches(self, examples: int) -> list[Batch]:
        """Return batches of one test example, evenly spaced in the split."""
        indices = torch.linspace(0, len(self.split) - 1, min(examples, len(self.split))).long().tolist()
        padded, limit, device = self.padded_length, self.config.max_length, torch.device("cpu")
        return [collate(self.split, [index], padded, limit, device) for index in indices]

    def audit(self, examples: int, places: int) -> Audit:
        """Measure how far the weights mix, with some tokens of each example: evenly spaced, the first among them.

        What the model takes for padding, such as black pixels of Pathfinder, is no token.

        Raises:
            UsageError: The influences of the tokens on each other are not finite, or all are zero.
        """
        prefix = int(self.config.pooling == "cls")
        generator = torch.Generator().manual_seed(0)
        distances, weights, widths = [], [], list[list[Tensor]]()
        rows: list[Tensor] = []
        for number, batch in enumerate(self.batches(examples)):
            zero_is_padding = self.model.embedding.zero_is_padding
            _, mask = hide_padding(batch.tokens, batch.mask, zero_is_padding=zero_is_padding)
            real = torch.arange(batch.tokens.shape[1]) if mask is None else mask[0].nonzero()[:, 0]
            for place in real[sorted(set(torch.linspace(0, len(real) - 1, places).long().tolist()))].tolist():
                with autocast(torch.device("cpu"), self.precision):
                    found = influence(self.model, batch.tokens, batch.mask, place + prefix, PROBES, generator)[prefix:]
                distances.append((real - place).abs())
                weights.append(found[real])
                rows += [found[: int(real[-1]) + 1]] if number == 0 else []
            statistics = [mixer.token_statistics().get("sigma") for mixer in mixers(self.model)]
            widths.append([each[0, real].detach() for each in statistics if each is not None])
        sigma = [float(torch.cat(layer).mean()) for layer in zip(*widths, strict=True)]
        together = torch.cat(weights)
        if not (together.isfinite().all() and together.any()):  # shares of them would be NaN
            raise UsageError(f"{self.name}: the influences of its tokens are not finite, or all are zero")
        return Audit(mixing=mixing(torch.cat(distances), together), sigma=sigma, influences=torch.stack(rows))

    def accuracy(self, examples: int, radius: int, change: Change) -> float:
        """Return the accuracy in % on some examples when tokens beyond a radius are hidden or shuffled.

        Raises:
            UsageError: The outputs of the model are not finite then.
        """
        generator = torch.Generator().manual_seed(0)
        right = 0
        with torch.no_grad(), autocast(torch.device("cpu"), self.precision):
            for batch in self.batches(examples):
                logits = logits_within(self.model, batch.tokens, batch.mask, radius, change, generator)
                if not logits.isfinite().all():  # the argmax of NaNs would be class 0
                    raise UsageError(f"{self.name}: its outputs are not finite where a token sees {radius} tokens")
                right += int(logits.argmax(dim=1) == batch.labels)
        return 100.0 * right / min(examples, len(self.split))


def names_of(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Return for each run of a frame the cells that name it: task, row and seed, and the profile if there are several.

    No two runs have the same cells: see `lra.results.dataframe.record_frame`. Runs of all profiles and tracks stand in
    one table, so data that differs between profiles is named, too, and so are settings that differ between tracks.
    """
    profiles = frame["profile"] + ", " + frame["track"] + " track"
    several = frame.groupby("column")["dataset"].transform("nunique") > 1  # of several profiles
    tasks = frame["column"].where(~several, frame["column"] + " (" + frame["dataset"] + ")")
    cells = pd.DataFrame({"task": tasks, "variant": frame["label"], "seed": frame["seed"].astype(str)})
    if profiles.nunique() > 1:
        cells.insert(0, "profile", profiles)
    return [{str(head): text for head, text in row.items()} for row in cells.to_dict("records")]


def locality(records: list[RunRecord], audits: list[Audit], *, examples: int, places: int) -> Table:
    """Tabulate how far runs mix."""
    frame = record_frame(records, together=["profile"])
    rows = [
        names
        | {
            "mean distance": f"{audit.mixing.mean:.2f}",
            "median": str(audit.mixing.median),
            "90 %": str(audit.mixing.most),
            "farthest": str(audit.mixing.farthest),
            "of": str(audit.mixing.reach),
        }
        | ({"sigma": _widths(record, audit)} if any(each.sigma for each in audits) else {})
        for names, record, audit in zip(names_of(frame), records, audits, strict=True)
    ]
    notes: list[str] = [
        Term("Distance: in tokens, between a token and those that its final state depends on, weighted by influence."),
        Term("Influence: squared norm of the Jacobian, estimated with random signs."),
        Term("Farthest: the largest distance with any influence; of: the largest that was looked at."),
    ]
    if any(each.sigma for each in audits):
        notes.append(Term("Sigma: mean width of the pooling of each layer, in tokens if no unit is given."))
    caption = (
        f"How far the chosen weights mix, on {_looked_at(records, examples)} test examples with at most {places} "
        "tokens of each"
    )
    return plain_table(caption, rows, preview(frame) + notes + provenance_notes(frame), frame)


def _widths(record: RunRecord, audit: Audit) -> str:
    unit = unit_of_widths(record.config)
    return ", ".join(f"{width:.1f}" for width in audit.sigma) + (f" {unit}" if unit != "tokens" else "")


def unit_of_widths(config: RunConfig) -> str:
    """Return the unit of the widths of pooling: tokens, or rows of the image where it pools on a grid of pixels."""
    return "rows" if config.variant.options.get("grid") == "auto" and info_of(config).grid else "tokens"


def answers(records: list[RunRecord], scores: Sequence[dict[int, float]], change: Change, examples: int) -> Table:
    """Tabulate the accuracy when tokens beyond each radius are hidden or shuffled.

    Args:
        records: The runs that were asked.
        scores: The accuracy in % by radius, of each run.
        change: What was done to the tokens.
        examples: Test examples that were answered.
    """
    frame = record_frame(records, together=["profile"])
    rows = [
        names | {f"within {radius}": f"{score:.1f}" for radius, score in found.items()}
        for names, found in zip(names_of(frame), scores, strict=True)
    ]
    caption = f"Accuracy in % when far tokens are {DONE[change]}, on {_looked_at(records, examples)} test examples"
    what = {"hide": "masked like padding", "shuffle": "put in a random order"}[change]
    note = Term(
        f"Within: for each state that the answer is read from, the tokens farther from it than this are {what}. A head "
        "that reads the first token has one such state, another one has a state for each token."
    )
    return plain_table(caption, rows, [*preview(frame), note, *provenance_notes(frame)], frame)


def _looked_at(records: Sequence[RunRecord], examples: int) -> str:
    """Say how many test examples were looked at: fewer than was asked, where there are no more."""
    found = {min(examples, record.outcome.test.total) for record in records if record.outcome is not None}
    return " or ".join(map(str, sorted(found)))
