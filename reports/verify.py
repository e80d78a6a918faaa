# SPDX-License-Identifier: Apache-2.0
"""The check of a record that somebody sends in: what can be worked out again must agree with what it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attention_zoo import OptionError, get_variant
from attention_zoo.registry import is_own
from lra.config.builtin import profile_names
from lra.config.schema import ADDED_LATER, NUMERICS_VERSION, ModelConfig, RunConfig, validate_section
from lra.config.yaml_loader import load_file
from lra.errors import StoreError, UsageError
from lra.measure.model_size import flops_of_example, parameters_of
from lra.models.downsamplers import is_own as is_own_layer
from lra.reading import visible
from lra.results.records import RunRecord, Store, is_conflict
from lra.results.upgrades import title_from_name
from lra.tasks import get_task, info_of
from lra.tasks import is_own as is_own_task

from .baselines import known_since
from .recipe import off_recipe

UNKNOWABLE = (
    "No check can tell whether the run was made as its record says: whoever trains another model, or makes up every "
    "answer, and writes record and arrays to match, is not found. Times, memory and environment are believed. "
    "`lra-run --config RECORD --force` repeats a run."
)
"""What the verdicts leave open."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found about one record."""

    path: Path
    record: RunRecord | None
    """None if it cannot be read."""
    faults: list[str]
    """Why it is refused; empty for a record that is accepted."""
    remarks: list[str] = field(default_factory=list)
    """What could not be checked."""

    def as_row(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        run_id = self.record.run_id if self.record else None
        return {"record": str(self.path), "run_id": run_id, "refused": self.faults, "not_checked": self.remarks}


def verify(path: Path) -> Verdict:
    """Check one record: schema, id, answers, variant, cost, recipe and data.

    Args:
        path: The file `results/ab/<run id>.json` of a store, whose arrays are in `arrays/ab/<run id>.npz`.
    """
    store = Store(path.absolute().parent.parent.parent)
    place = store.record_path(path.stem)
    if not path.is_file():
        return Verdict(path=path, record=None, faults=[f"there is no record at {path}"])
    if not (place.is_file() and place.samefile(path)):  # another file than the one that is named would be read
        where = f"expected results/{path.stem[:2]}/{path.stem}.json"
        return Verdict(path=path, record=None, faults=[f"it is not in its place in a store: {where}"])
    try:
        record = store.find(path.stem)
    except StoreError as error:
        return Verdict(path=path, record=None, faults=[str(error)])
    assert record is not None
    faults, remarks = list[str](), list[str]()
    faults += [f"{other.name}: {words}" for other, words in store.other_outcomes(path.stem).items()]
    if record.outcome is None:
        remarks.append(f"the run {record.status}, so there are no answers to check")
    _check_data(record, faults, remarks)
    _check_variant(record, faults, remarks)
    _check_layer(record.config.model, faults, remarks)
    _check_start(record.config, faults, remarks)
    # No program of somebody else is loaded, be it a variant, a task or a layer.
    config = record.config
    if not faults and not (config.variant.origin or config.model.pool_origin) and is_own_task(config.task):
        _check_recipe(config, faults, remarks)
        _check_cost(record, faults, remarks)
    return Verdict(path=path, record=record, faults=faults, remarks=remarks)


def records_below(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the records that files and stores name.

    Raises:
        UsageError: There is no such file or folder, or a folder has no records.
    """
    for path in paths:
        if path.is_dir():
            found = [each for each in visible(path / "results", "*/*.json", StoreError) if not is_conflict(each)]
            if not found:
                raise UsageError(f"{path} has no records: expected {path / 'results'}/ab/<run id>.json")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"there is no file or folder {path}")


def _check_data(record: RunRecord, faults: list[str], remarks: list[str]) -> None:
    """Compare the data, and what every run on them has, with the known ones."""
    config, task = record.config, record.config.task
    if is_own_task(task):
        faults += validate_section(get_task(task).options, config.data, "data")[1]
        if config.task_origin:
            faults.append(f"{task} is a task of this project, but the record names the program {config.task_origin}")
        _check_title(record.task_title, get_task(task).info.title, task, faults)
    else:
        remarks.append(f"{task} is not a task of this project, so nothing of its data, recipe and cost is checked")
    known = load_file(Path(__file__).with_name("known_data.yaml")).get(task, {})
    by_digest = {data["digest"]: name for name, data in known.items()}
    data = known.get(record.dataset)
    if data is None and record.data_digest in by_digest:
        faults.append(f"its data are called {by_digest[record.data_digest]!r}, and not {record.dataset!r}")
    elif data is None:
        remarks.append(
            f"no known data of {task} are called {record.dataset!r}, so their digest, number of test examples and "
            "baselines are not checked"
        )
    elif data["digest"] != record.data_digest:
        faults.append(
            f"its data are not {record.dataset!r}: digest {record.data_digest[:12]}, known {data['digest'][:12]}"
        )
    else:
        _check_known(record, data, faults, remarks)


def _check_known(record: RunRecord, data: Mapping[str, Any], faults: list[str], remarks: list[str]) -> None:
    """Compare what a record says of known data: options, number of test examples, answers without a model."""
    ours, theirs = data["options"], record.config.hashed()["data"]
    if options := sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)):
        faults.append(f"its data were not made with the options of the record: {', '.join(options)}")
    if record.outcome is not None and record.outcome.test.total != data["test"]:
        faults.append(f"its data have {data['test']:,} test examples, and it has {record.outcome.test.total:,} answers")
    since = known_since(record)
    known = data["baselines"] | {name: value for name, value in since.items() if name in record.baselines}
    for name, value in known.items():
        if record.baselines.get(name) != value:
            faults.append(f"baseline {name}: {record.baselines.get(name, 'missing')} in the record, known {value}")
    if more := sorted(record.baselines.keys() - known.keys()):
        remarks.append(f"baselines {', '.join(more)}: not known here")


def _check_title(shown: str, title: str, name: str, faults: list[str]) -> None:
    """Check the name under which tables show a variant or a task of ours."""
    if shown != title and shown != title_from_name(name):  # records of the first schema have no title
        faults.append(f"it calls {name} {shown!r}, and not {title!r}")


def _check_variant(record: RunRecord, faults: list[str], remarks: list[str]) -> None:
    """Check that the variant is ours and has the options of the record, all of them, or that it names its program."""
    choice = record.config.variant
    if not is_own(choice.name, choice.options):
        what = "built around a variant that" if is_own(choice.name) else "a variant that"
        if choice.origin:
            remarks.append(f"{choice.name} is {what} is not of this project: {choice.origin}, which is not checked")
        else:
            faults.append(f"{choice.name} is {what} is not of this project, and the record names no program")
        return
    _check_title(record.variant_title, get_variant(choice.name).title, choice.name, faults)
    if choice.origin:
        faults.append(f"{choice.name} is a variant of this project, but the record names the program {choice.origin}")
    try:
        typed = choice.typed
    except OptionError as error:
        faults.append(f"variant: {error.args[0]}")
        return
    prefix = f"variant.{choice.name}."
    later = {path.removeprefix(prefix) for path in ADDED_LATER if path.startswith(prefix)}
    if missing := sorted(typed.to_dict().keys() - choice.options.keys() - later):
        faults.append(f"variant: the options {', '.join(missing)} of {choice.name} are missing")


def _check_layer(model: ModelConfig, faults: list[str], remarks: list[str]) -> None:
    """Check that the layer that makes feature maps smaller is ours, or names its program."""
    if is_own_layer(model.pool):
        if model.pool_origin:
            faults.append(
                f"{model.pool} is a layer of this project, but the record names the program {model.pool_origin}"
            )
    elif model.pool_origin:
        remarks.append(f"{model.pool} is not a layer of this project: {model.pool_origin}, which is not checked")
    else:
        faults.append(f"{model.pool} is not a layer of this project, and the record names no program")


def _check_start(config: RunConfig, faults: list[str], remarks: list[str]) -> None:
    """Check that the track admits to start from another run."""
    if config.start is None:
        return
    if config.track == "matched":
        faults.append("matched track, but it starts from another run, whose steps come on top of the profile's")
    else:
        remarks.append(f"it starts from run {config.start.run[:12]}, which is not checked")


def _check_recipe(config: RunConfig, faults: list[str], remarks: list[str]) -> None:
    """Check on the matched track that everything but the variant's options is the profile's."""
    if config.track != "matched":
        return
    if config.profile not in profile_names():
        remarks.append(f"{config.profile} is not a profile of this project, so its recipe is not checked")
        return
    try:
        differing = off_recipe(config)
    except UsageError as error:
        faults.append(f"its configuration is refused: {str(error).splitlines()[0]}")
        return
    if differing:
        faults.append(f"matched track, but not the recipe of profile {config.profile}: {', '.join(differing)}")


def _check_cost(record: RunRecord, faults: list[str], remarks: list[str]) -> None:
    """Count parameters and operations again; another variant under a known name seldom has both."""
    if faults:
        return
    try:
        parameters, full = parameters_of(record.config)
    except UsageError as error:
        faults.append(f"its model cannot be built: {str(error).splitlines()[0]}")
        return
    if (parameters, full) != (record.cost.parameters, record.cost.parameters_full):
        faults.append(
            f"{record.config.variant.name} has {parameters:,} parameters here (full attention {full:,}), in the record "
            f"{record.cost.parameters:,} ({record.cost.parameters_full:,})"
        )
    elif record.numerics_version != NUMERICS_VERSION:
        remarks.append(
            f"numerics version {record.numerics_version}: operations are counted for {NUMERICS_VERSION} only"
        )
    elif (device := record.environment.get("device")) != "cpu":  # adaptive_span and contextpool compute otherwise there
        remarks.append(f"operations on {device} are not checked")
    else:
        flops = flops_of_example(record.config, info_of(record.config), torch.device("cpu"))
        if flops != record.cost.flops:
            faults.append(f"an example takes {flops} operations here, and {record.cost.flops} in the record")
