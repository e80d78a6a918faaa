# SPDX-License-Identifier: Apache-2.0
"""The check of a record that somebody sends in: what can be worked out again must agree with what it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attention_zoo import OptionError
from attention_zoo.registry import is_own
from lra.config.builtin import profile_names
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import ADDED_LATER, NUMERICS_VERSION, RunConfig, VariantChoice, validate_section
from lra.config.yaml_loader import load_file
from lra.errors import StoreError, UsageError
from lra.measure.model_size import flops_of_example, parameters_of
from lra.reading import visible
from lra.results.records import RunRecord, Store
from lra.tasks import get_task
from lra.tasks import is_own as is_own_task

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
    try:
        record = Store(path.absolute().parents[2]).find(path.stem)
    except (StoreError, IndexError) as error:
        return Verdict(path=path, record=None, faults=[str(error)])
    if record is None:
        return Verdict(path=path, record=None, faults=[f"there is no record at {path}"])
    faults, remarks = list[str](), list[str]()
    if record.outcome is None:
        remarks.append(f"the run {record.status}, so there are no answers to check")
    _check_data(record, faults, remarks)
    _check_variant(record.config.variant, faults, remarks)
    # No program of somebody else is loaded, be it a variant or a task.
    if not faults and not record.config.variant.origin and is_own_task(record.config.task):
        _check_recipe(record.config, faults, remarks)
        _check_cost(record, faults, remarks)
    return Verdict(path=path, record=record, faults=faults, remarks=remarks)


def records_below(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the records that files and stores name.

    Raises:
        UsageError: There is no such file or folder, or a folder has no records.
    """
    for path in paths:
        if path.is_dir():
            found = [each for each in visible(path / "results", "*/*.json") if ".conflict-" not in each.name]
            if not found:
                raise UsageError(f"{path} has no records: expected {path / 'results'}/ab/<run id>.json")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"there is no file or folder {path}")


def _check_data(record: RunRecord, faults: list[str], remarks: list[str]) -> None:
    """Compare the digest of the data with the known one."""
    task = record.config.task
    if is_own_task(task):
        faults += validate_section(get_task(task).options, record.config.data, "data")[1]
    else:
        remarks.append(f"{task} is not a task of this project, so nothing of its data, recipe and cost is checked")
    known = load_file(Path(__file__).with_name("known_data.yaml")).get(task, {})
    digest = known.get(record.dataset)
    if digest is None:
        remarks.append(f"no known data of {task} are called {record.dataset!r}, so their digest is not checked")
    elif digest != record.data_digest:
        faults.append(f"its data are not {record.dataset!r}: digest {record.data_digest[:12]}, known {digest[:12]}")


def _check_variant(choice: VariantChoice, faults: list[str], remarks: list[str]) -> None:
    """Check that the variant is ours and has the options of the record, all of them, or that it names its program."""
    if not is_own(choice.name):
        if choice.origin:
            remarks.append(
                f"{choice.name} is not a variant of this project: it is {choice.origin}, which is not checked"
            )
        else:
            faults.append(f"{choice.name} is not a variant of this project, and the record names no program")
        return
    try:
        typed = choice.typed
    except OptionError as error:
        faults.append(f"variant: {error.args[0]}")
        return
    if choice.origin and all(is_own(inner) for inner in typed.inner_variants()):
        faults.append(f"{choice.name} is a variant of this project, but the record names the program {choice.origin}")
    elif choice.origin:
        remarks.append(f"{choice.name} is built around {choice.origin}, which is not checked")
    prefix = f"variant.{choice.name}."
    later = {path.removeprefix(prefix) for path in ADDED_LATER if path.startswith(prefix)}
    if missing := sorted(typed.to_dict().keys() - choice.options.keys() - later):
        faults.append(f"variant: the options {', '.join(missing)} of {choice.name} are missing")


def _check_recipe(config: RunConfig, faults: list[str], remarks: list[str]) -> None:
    """Check on the matched track that everything but the variant's options is the profile's."""
    if config.track != "matched":
        return
    if config.profile not in profile_names():
        remarks.append(f"{config.profile} is not a profile of this project, so its recipe is not checked")
        return
    options = {f"variant.{name}": value for name, value in config.variant.options.items()}
    try:
        ours = resolve(
            task=config.task, variant=config.variant.name, profile=load_profile(config.profile), seed=config.seed,
            overrides=options,
        )  # fmt: skip
    except UsageError as error:
        faults.append(f"its configuration is refused: {str(error).splitlines()[0]}")
        return
    theirs, recipe = config.hashed(), ours.hashed()
    differing = [
        f"{section}.{name}"
        for section in ("data", "model", "train")
        for name in sorted({*theirs[section], *recipe[section]})
        if theirs[section].get(name) != recipe[section].get(name)
    ]
    if differing:
        faults.append(f"matched track, but not the recipe of profile {config.profile}: {', '.join(differing)}")


def _check_cost(record: RunRecord, faults: list[str], remarks: list[str]) -> None:
    """Count parameters and operations again; another variant under a known name seldom has both."""
    if faults:
        return
    parameters, full = parameters_of(record.config)
    if (parameters, full) != (record.cost.parameters, record.cost.parameters_full):
        faults.append(
            f"{record.config.variant.name} has {parameters:,} parameters here (full attention {full:,}), in the record "
            f"{record.cost.parameters:,} ({record.cost.parameters_full:,})"
        )
    elif record.numerics_version != NUMERICS_VERSION:
        remarks.append(
            f"numerics version {record.numerics_version}: operations are counted for {NUMERICS_VERSION} only"
        )
    else:
        flops = flops_of_example(record.config, get_task(record.config.task).info, torch.device("cpu"))
        if flops != record.cost.flops:
            faults.append(f"an example takes {flops} operations here, and {record.cost.flops} in the record")
