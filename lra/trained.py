# SPDX-License-Identifier: Apache-2.0
"""A run that was trained, to use: its record, its data, its model with the chosen weights, and its answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lra.config.resolve import with_programs
from lra.config.schema import NUMERICS_VERSION, StartConfig
from lra.data.batching import evaluation_batches
from lra.data.dataset import PreparedData, data_home
from lra.data.overlap import MOSTLY, found_in
from lra.errors import DataError, StoreError, UsageError
from lra.models.convnet import ConvNet
from lra.models.foreign import ForeignModel
from lra.models.precision import autocast
from lra.models.transformer import Classifier, build_model
from lra.names import suggest
from lra.reading import visible
from lra.results.checkpoints import read_state, weights_digest
from lra.results.records import RunRecord, Store, read_record
from lra.results.weights import load_weights
from lra.tasks import get_task, info_of

CLASSIFIER_LAYERS = ("head.hidden.", "head.out.", "head.score.")
"""Beginnings of the names of the weights that belong to a task, and that no other run starts from."""
PREDICTION_TOKENS = 65_536
"""Padded tokens per batch of predictions."""
SEEN = 0.01
"""Share of the test examples that a run may have seen, of which some are alike by chance."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run of a store that has a number; `load_run` finds it."""

    record: RunRecord
    store: Store

    def weights(self) -> dict[str, Tensor]:
        """Read the weights that the run was scored with, by the names of the model.

        Raises:
            StoreError: The weights are missing or damaged, or are not those of the record.
            UsageError: The run ended without weights.
        """
        record = self.record
        if record.outcome is None:
            raise UsageError(f"run {record.run_id[:12]} ended without weights: {record.status}")
        path = self.store.checkpoint_folder(record.run_id) / "chosen.pt"
        if not path.is_file():
            raise StoreError(
                f"the checkpoints of run {record.run_id[:12]} are not in the store {self.store.root}, only its record; "
                f"lra-run --config {self.store.record_path(record.run_id)} --store NEW trains it again"
            )
        weights: dict[str, Tensor] = read_state(path)["model"]
        if weights_digest(weights) != record.outcome.weights_digest:
            raise StoreError(f"{path} does not hold the weights that run {record.run_id[:12]} was scored with")
        return weights

    def start(self) -> StartConfig:
        """Say from which weights another run starts that starts from this one.

        Raises:
            UsageError: The run ended without weights.
        """
        if self.record.outcome is None:
            raise UsageError(f"run {self.record.run_id[:12]} ended without weights: {self.record.status}")
        return StartConfig(
            run=self.record.run_id, weights=self.record.outcome.weights_digest, steps=self.record.config.budget
        )

    def model(self, device: str = "cpu") -> Classifier | ConvNet | ForeignModel:
        """Build the model with the weights that the run was scored with, in evaluation mode.

        Args:
            device: Where it is placed, as torch names it.

        Returns:
            A module that takes tokens, (batch, length), and a mask, (batch, length), True = real token, or None; it
            gives logits, (batch, classes). A run in another precision than float32 had its answers under
            `lra.models.precision.autocast`.

        Raises:
            StoreError: The weights are missing or damaged, or are not those of the record; or the program of a third
                party has changed since.
            UsageError: The run ended without weights.
        """
        record, weights = self.record, self.weights()
        here = with_programs(record.config)
        if here.hashed() != record.config.hashed():
            raise StoreError(
                f"run {record.run_id[:12]} was made with another program: {record.config.variant.origin or 'our own'}; "
                f"here it is {here.variant.origin or 'our own'}"
            )
        if record.config.numbers_until(record.numerics_version) < NUMERICS_VERSION:
            warnings.warn(
                f"run {record.run_id[:12]} was made under numerics version {record.numerics_version}; this is version "
                f"{NUMERICS_VERSION}, whose outputs may differ",
                stacklevel=2,
            )
        info = info_of(record.config)
        model = build_model(record.config, info.vocab_size, info.num_classes)
        load_weights(model, weights)
        return model.to(device).eval()

    def data(self, data_dir: Path | None = None) -> PreparedData:
        """Open the data that the run was made with, and verify it.

        Args:
            data_dir: Folder of prepared data; None takes the default one.

        Raises:
            StoreError: The data is not that of the record.
            DataError: The data is missing or damaged.
        """
        task = get_task(self.record.config.task)
        options = task.options.model_validate(self.record.config.data)
        data = task.prepare(options, data_home(data_dir), progress=False)
        if data.digest != self.record.data_digest:
            raise StoreError(f"{data.path} holds other data than run {self.record.run_id[:12]} was made with")
        return data.verified()

    def predict(self, texts: Sequence[str], device: str = "cpu") -> np.ndarray:
        """Classify texts: reviews for the task `text`, expressions such as `[MAX 2 9 ]` for `listops`.

        Returns:
            The classes, (texts,), int64.

        Raises:
            UsageError: The task has no texts, or one is not of the form that it wants; or a single text was given; or
                the outputs for a text are not finite.
            StoreError: See `model`.
        """
        if isinstance(texts, str):  # its characters would be taken for texts
            raise UsageError("predict takes a list of texts; for one text, write [text]")
        config = self.record.config
        task, model = get_task(config.task), self.model(device)
        if not texts:
            return np.zeros(0, dtype=np.int64)
        examples = task.encode(list(texts), task.options.model_validate(config.data))
        answers = np.zeros(len(examples), dtype=np.int64)
        limit = config.model.max_length
        if examples.lengths.max() > limit:
            number = int(examples.lengths.argmax())
            raise UsageError(f"text {number} has {examples.lengths[number]} tokens; this run takes at most {limit}")
        with torch.no_grad(), autocast(torch.device(device), config.train.precision):
            for indices, batch in evaluation_batches(
                examples,
                max_tokens=PREDICTION_TOKENS,
                padded_length=config.padded_length,
                limit=limit,
                device=torch.device(device),
            ):
                logits = model(batch.tokens, batch.mask)
                if not logits.isfinite().all():  # the argmax of NaNs would be class 0
                    number = int(indices[int((~logits.isfinite().all(dim=1)).nonzero()[0])])
                    raise UsageError(f"text {number}: the outputs of the model are not finite")
                answers[indices] = logits.argmax(dim=1).cpu().numpy()
        return answers


def start_from(model: Classifier, source: TrainedRun, start: StartConfig) -> None:
    """Give a model the weights of a finished run, all but those of the classifier's own layers.

    Raises:
        StoreError: The weights are missing or damaged, or are not those that the configuration names.
        UsageError: The two models differ in more than these layers.
    """
    run = source.record.run_id
    if source.start() != start:
        raise StoreError(
            f"run {run[:12]} has other weights in {source.store.root} than those that this run starts from"
        )
    weights, own = source.weights(), model.state_dict()
    theirs = {name: tuple(value.shape) for name, value in weights.items() if not name.startswith(CLASSIFIER_LAYERS)}
    ours = {name: tuple(value.shape) for name, value in own.items() if not name.startswith(CLASSIFIER_LAYERS)}
    wrong = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if wrong:
        name = wrong[0]
        raise UsageError(
            f"--from {run[:12]}: another model than that of this run: {name} has the shape "
            f"{theirs.get(name, 'of nothing')} there, {ours.get(name, 'of nothing')} here; lra-run --dry-run prints "
            "the settings of a run"
        )
    load_weights(model, own | {name: weights[name] for name in ours})


def check_unseen(source: TrainedRun, data: PreparedData) -> None:
    """Check that a run is not tested on what the run that it starts from was trained on or chosen by.

    Training or validation data of the run itself may hold some test examples, as those of tasks with few inputs do.
    Only what comes on top of these counts: to be chosen by an example is less than to be trained on it.

    Args:
        source: The run to start from; the runs that this one started from are checked, too.
        data: What the run is trained and tested on; the data of the others is looked for beside it.

    Raises:
        UsageError: More than `SEEN` of the test examples have been seen.
        DataError: The data of a run is missing, so that this cannot be known.
        StoreError: It is not that of its record, or a record is damaged.
    """
    run, test = source.record.run_id, data.split("test")
    own = {name: found_in(test, data.split(name)) for name in ("train", "validation")}
    seen = np.zeros(len(test), dtype=bool)
    before: TrainedRun | None = source
    while before is not None:
        try:
            there = before.data(data.path.parent)
        except DataError as error:
            raise DataError(f"--from {run[:12]} needs its data, since it may hold test examples: {error}") from error
        cut = get_task(before.record.config.task).info.crops
        if there.digest != data.digest:
            seen |= found_in(test, there.split("train"), cut=cut) & ~own["train"]
            seen |= found_in(test, there.split("validation"), cut=cut) & ~(own["train"] | own["validation"])
        start = before.record.config.start
        before = None if start is None else load_run(start.run, before.store.root)
    if seen.mean() > SEEN:
        raise UsageError(
            f"--from {run[:12]}: {seen.sum():,} of the {len(test):,} test examples are among those that this run was "
            "trained on or chosen by, so the number would mean nothing; prepare one of the two with another data.seed"
        )


def check_hidden(data: PreparedData) -> None:
    """Check that training and validation do not have the test examples, so that pretraining sees no test input.

    Raises:
        UsageError: More than half of the test examples are in one of them.
    """
    for other in ("validation", "train"):
        share = found_in(data.split("test"), data.split(other)).mean()
        if share > MOSTLY:
            raise UsageError(
                f"pretrain.share: {share:.0%} of the test examples of {data.path.name} are in its {other} split, and "
                "pretraining may not see test inputs"
            )


def load_run(run: str | Path, store: str | Path = "lra-results") -> TrainedRun:
    """Find a run: by the file of its record, or by its id or the beginning of it.

    Args:
        run: Path of a record, such as `lra-results/results/ab/ab12....json`, or an id.
        store: Folder of results in which an id is looked up.

    Raises:
        UsageError: There is no such run, or there are several.
        StoreError: The record is damaged.
    """
    path = Path(run)
    if path.suffix == ".json":
        if not path.is_file():
            raise UsageError(f"{path}: no such record")
        path = path.absolute()
        run_id, holder = read_record(path).run_id, Store(path.parent.parent.parent)
        if path != holder.record_path(run_id):
            raise StoreError(f"{path} is not in its place in a store, as results/{run_id[:2]}/{run_id}.json")
        return _of_store(run_id, holder)
    root = Path(store)
    records = visible(root, "results/*/*.json", StoreError)
    ids = [file.stem for file in records if ".conflict-" not in file.name]
    found = [run_id for run_id in ids if run_id.startswith(str(run).lower())]
    if len(found) != 1:
        begins = {run_id[: len(str(run))] for run_id in ids}
        hint = f"; {len(found)} do" if found else f"; {suggest(str(run), begins)}" if ids else ""
        raise UsageError(f"no single record in {root} begins with {str(run)!r}{hint}")
    return _of_store(found[0], Store(root))


def _of_store(run_id: str, store: Store) -> TrainedRun:
    """Return a run, whose record is checked against its arrays."""
    record = store.find(run_id)
    if record is None:
        raise StoreError(f"{store.record_path(run_id)} has just been removed")
    return TrainedRun(record=record, store=store)
