# SPDX-License-Identifier: Apache-2.0
"""Records as a tidy data frame: one row for each run that was completed or tried."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra.config.labels import EXECUTION, NUMERICS, Row, differing, in_words, row_names, settings_of, told_apart, varying
from lra.config.schema import RunConfig, without_folder
from lra.errors import StoreError
from lra.reading import visible
from lra.results.records import EARLIER, AttemptedRun, RunRecord, Store, conflict_words, is_conflict, same_outcome

if TYPE_CHECKING:
    import pandas as pd

    from lra.results.bench_records import BenchRecord

COLUMNS = (
    "run_id", "task", "title", "dataset", "data_digest", "profile", "track", "variant", "variant_title",
    "seed", "status", "accuracy",
    "correct", "total", "validation_accuracy", "selected_step", "steps", "batch_size", "layers", "parameters",
    "parameters_full", "flops", "examples_per_second", "tokens_per_second", "peak_bytes", "train_seconds", "device",
    "backend", "continued", "finished_at", "settings", "recipe", "column", "label",
)  # fmt: skip


_SPEED = {
    "threads": "unknown",
    "processes": 1,
    "torch": "unknown",
    "deterministic_algorithms": False,
    "library_settings": "",
    "float32_matmul_precision": None,
    "cpu_capability": None,
    "cuda": None,
    "cudnn": None,
    "tf32": None,
}
"""What of an environment a speed depends on besides the processor, with the values of records that do not name it. None
is not known, and differs from no value."""
_ON_CPU, _ON_CUDA = {"threads", "cpu_capability"}, {"cuda", "cudnn", "tf32"}
"""What of it counts on one kind of device only."""


def load(folder: Path | str) -> pd.DataFrame:
    """Return the records of a store as a tidy data frame, one row per run; see `record_frame`.

    Files that are damaged, foreign or of a newer schema, and second outcomes of one run, are listed in
    `frame.attrs["problems"]`. Runs that have no record, such as those out of memory, are not in it; `lra-report export`
    has them.

    Raises:
        StoreError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise StoreError(f"no store at {root}")
    files = visible(root, "results/*/*.json", StoreError)
    entries = list(Store(root).records(files))
    problems = [str(entry) for entry in entries if isinstance(entry, StoreError)] + conflicts(files)
    records = {entry.run_id: entry for entry in entries if isinstance(entry, RunRecord)}
    frame = record_frame(without_older(records, dict.fromkeys(records, Store(root)), problems).values())
    frame.attrs["problems"] = problems
    return frame


def conflicts(files: Iterable[Path]) -> list[str]:
    """Name the second outcomes of runs in a store, which repetitions left beside the first ones, one line each."""
    return [f"{path}: {words}" for path in files if is_conflict(path) and (words := conflict_words(path))]


def same_numbers(run: RunRecord | AttemptedRun) -> tuple[bytes, str, int]:
    """Return a key that runs share if they have the same numbers, be it under two numerics versions."""
    return run.config.key(), run.data_digest, run.config.numbers_until(run.numerics_version)


def without_older(
    records: Mapping[str, RunRecord], stores: Mapping[str, Store], problems: list[str]
) -> dict[str, RunRecord]:
    """Return the records; of a run that is there under two numerics versions with the same numbers, the newest one.

    Args:
        records: By run id.
        stores: Where each one is.
        problems: Grows by a line for each two that have different outcomes or costs.

    Raises:
        DamagedFileError: The arrays of one of two went away.
    """
    newest: dict[tuple[bytes, str, int], RunRecord] = {}
    for record in sorted(records.values(), key=lambda each: -each.numerics_version):
        kept = newest.setdefault(same_numbers(record), record)
        if not same_outcome((stores[kept.run_id], kept), (stores[record.run_id], record)):
            problems.append(f"{record.run_id}: another outcome than {kept.run_id}, whose numbers should be the same")
        elif (kept.cost, kept.environment) != (record.cost, record.environment):
            problems.append(f"{record.run_id}: executed apart from {kept.run_id}, the same run, whose cost is shown")
    return {record.run_id: record for record in newest.values()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """What names of rows depend on besides the runs of one table: see `naming_of`."""

    titles: Mapping[tuple[str, str], str]
    """The display name of each variant by its registered name and program; see `unique_titles`."""
    task_titles: Mapping[tuple[str, str], str]
    """That of each task by its registered name and the title in the record."""
    data: Mapping[tuple[str, str], Collection[str]]
    """The digests of all data that have one name, by task and that name."""
    differing: Mapping[str, Collection[str]]
    """By variant, the options and programs in which its runs differ, see `lra.config.labels.differing`."""
    versions: Mapping[str, int]
    """Run id -> the numerics version that a row names."""
    recipes: Mapping[tuple[str, str], Sequence[str]]
    """By profile and task, see `differing_recipes`."""


def naming_of(runs: Sequence[RunRecord | AttemptedRun], measurements: Sequence[BenchRecord] = ()) -> Naming:
    """Return what the names of all runs and measurements in some stores have in common.

    The numbers of a run may hold for several numerics versions. If those of all runs of a variant hold for one, they
    have that one, else each has the newest for which its own hold; but none newer than that of all runs.
    """
    versions: dict[str, int] = {}
    newest = max((run.numerics_version for run in runs), default=0)
    by_variant: dict[str, list[RunRecord | AttemptedRun]] = {}
    for run in runs:
        by_variant.setdefault(_variant(run), []).append(run)
    for group in by_variant.values():
        until = [run.config.numbers_until(run.numerics_version) for run in group]
        if max(run.numerics_version for run in group) <= min(until):
            until = [min(until)] * len(group)
        versions |= {run.run_id: min(newest, last) for run, last in zip(group, until, strict=True)}
    data: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        data.setdefault((_task(run), run.dataset), set()).add(run.data_digest)
    everything = [*runs, *measurements]
    found = differing((_variant(entry), settings_of(entry.config)) for entry in everything)
    for variant, names in differing((_variant(run), {NUMERICS: versions[run.run_id]}) for run in runs).items():
        found[variant] |= names
    return Naming(
        titles=unique_titles((_variant(each), each.config.variant.origin, each.variant_title) for each in everything),
        task_titles=unique_titles((_task(run), run.task_title, run.task_title) for run in runs),
        data=data,
        differing=found,
        versions=versions,
        recipes=differing_recipes([run.config for run in runs]),
    )


def differing_recipes(configs: Iterable[RunConfig]) -> dict[tuple[str, str], list[str]]:
    """Return the settings in which runs of one profile and task differ on the matched track, where they should not."""
    recipes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for config in configs:
        if config.track == "matched":
            recipe = {
                name: value
                for name, value in settings_of(config).items()
                if not name.startswith(("variant.", "pretrain.")) and name not in EXECUTION
            }
            recipes.setdefault((config.profile, without_folder(config.task)), []).append(recipe)
    return {place: varying(group) for place, group in recipes.items()}


def _variant(entry: RunRecord | AttemptedRun | BenchRecord) -> str:
    return without_folder(entry.config.variant.name)


def _task(run: RunRecord | AttemptedRun) -> str:
    return without_folder(run.config.task)


def record_frame(
    records: Iterable[RunRecord],
    attempts: Iterable[AttemptedRun] = (),
    naming: Naming | None = None,
    together: Sequence[str] = ("profile", "track"),
) -> pd.DataFrame:
    """Return one row per record, then one per run that was tried and has none.

    Columns in percent: `accuracy`, `validation_accuracy`. What a run did not give is missing, never 0. `settings` holds
    everything else that can change the number, as one flat dict: `variant.rank`, `model.num_layers`, `train.lr` ...

    `recipe` has the settings in which runs of a profile on this task differ on the matched track, where they should
    not; it is empty where there is one recipe. `column` is the heading of the task in tables; different data of one
    task get different headings. `label` is the name of the row: see `lra.config.labels`. One profile, track, label,
    heading and seed belong to one run, so a mean over these never mixes different runs. `device` is the processor;
    where runs on one processor differ in their number of threads or processes, in the versions or settings of torch
    and what is below it, or in the instructions that it uses, it names these too, since a speed of 8 threads is no
    multiple of one of 1.

    Args:
        records: Of any profiles.
        attempts: Runs that have no record.
        naming: That of all runs among which these are; None if these are all.
        together: Columns in which the runs of one table are alike.
    """
    import pandas as pd

    done, lost = list(records), list(attempts)
    runs: list[RunRecord | AttemptedRun] = [*done, *lost]
    naming = naming or naming_of(runs)
    devices = conditions_of_speed([record.processor for record in done], [record.environment for record in done])
    rows = [_record_row(record) | {"device": device} for record, device in zip(done, devices, strict=True)]
    rows += [_run_row(attempt) | {"status": attempt.status} for attempt in lost]
    for row, run in zip(rows, runs, strict=True):
        apart = naming.recipes.get((run.config.profile, _task(run)), []) if run.config.track == "matched" else []
        row["recipe"] = in_words(row["settings"], apart)
        row["settings"][NUMERICS] = naming.versions[run.run_id]
        row["variant_title"] = naming.titles[_variant(run), run.config.variant.origin]
        row["title"] = naming.task_titles[_task(run), run.task_title]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["accuracy", "validation_accuracy", "flops", "examples_per_second", "tokens_per_second", "peak_bytes"]
    frame[numbers] = frame[numbers].astype(float)
    headings = functools.partial(_headings, data=naming.data)
    named = functools.partial(label_rows, elsewhere=naming.differing)
    for column, written in (("column", headings), ("label", named)):
        texts: dict[Any, str] = {}
        for _, group in frame.groupby(list(together)):
            texts |= dict(zip(group.index, written(group), strict=True))
        frame[column] = [texts[row] for row in frame.index]
    return frame


def unique_titles(titled: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """Return the titles to show of variants or tasks, by registered name and program.

    The registered name follows a title that another has too. Of one program, the last title counts.

    Args:
        titled: Registered names, programs (empty for variants of this project), and titles.
    """
    titles = {(name, program): title for name, program, title in titled}
    holders: dict[str, set[str]] = {}
    for (name, _), title in titles.items():
        holders.setdefault(title, set()).add(name)
    return {
        (name, program): title if len(holders[title]) == 1 else f"{title} ({name})"
        for (name, program), title in titles.items()
    }


def label_rows(
    frame: pd.DataFrame,
    leave_out: Collection[str] = (),
    *,
    name: str = "variant_title",
    elsewhere: Mapping[str, Collection[str]] | None = None,
) -> list[str]:
    """Return the name of each row of a frame that one table can hold: see `lra.config.labels`.

    Args:
        frame: With the columns `variant`, `variant_title`, `column`, `profile`, `task` and `settings`.
        leave_out: Settings that the table shows in another way.
        name: Column with the name of the variant: `variant_title`, or `variant` as on the command line.
        elsewhere: What differs between runs of a variant in this table and others: see `lra.config.labels.differing`.
    """
    columns = (frame[each] for each in ("variant", name, "column", "profile", "task", "settings"))
    rows = [
        Row(variant=variant, shown=shown, heading=heading, profile=profile, task=task, settings=settings)
        for variant, shown, heading, profile, task, settings in zip(*columns, strict=True)
    ]
    return row_names(rows, leave_out, elsewhere)


def _headings(frame: pd.DataFrame, data: Mapping[tuple[str, str], Collection[str]]) -> list[str]:
    datasets = frame.groupby("task")["dataset"].nunique()
    headings = []
    for task, title, dataset, digest in zip(
        frame["task"], frame["title"], frame["dataset"], frame["data_digest"], strict=True
    ):
        heading = title if datasets[task] == 1 else f"{title} ({dataset})"
        headings.append(heading if len(data[task, dataset]) == 1 else f"{heading} {digest[:8]}")
    return told_apart(headings, frame["task"].tolist())


def conditions_of_speed(names: Sequence[str], environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each machine, with what of `_SPEED` differs between the environments of one name.

    The speed of a run that was continued under another environment is that of none, so its name says so.
    """
    shares: dict[str, dict[str, set[str]]] = {}
    written = []
    for machine, environment in zip(names, environments, strict=True):
        values = {**_SPEED, **environment}
        idle = _ON_CUDA if environment.get("device") == "cpu" else _ON_CPU
        shown = {
            name: "unknown" if value is None else "none" if value == "" else value for name, value in values.items()
        }
        written.append({name: f"{name.replace('_', ' ')} {shown[name]}" for name in _SPEED if name not in idle})
        for name, text in written[-1].items():
            known = shares.setdefault(machine, {}).setdefault(name, set())
            known.update([] if values[name] is None else [text])
    return [
        ", ".join(
            [
                machine,
                *(text for name, text in texts.items() if len(shares[machine][name]) > 1),
                *(["in part under another environment"] if EARLIER in environment else []),
            ]
        )
        for machine, texts, environment in zip(names, written, environments, strict=True)
    ]


def _record_row(record: RunRecord) -> dict[str, Any]:
    cost, outcome = record.cost, record.outcome
    row = _run_row(record) | {
        "status": record.status,
        "parameters": cost.parameters,
        "parameters_full": cost.parameters_full if record.config.mixes else math.nan,
        "flops": cost.flops,
        "examples_per_second": cost.examples_per_second,
        "tokens_per_second": cost.tokens_per_second,
        "peak_bytes": cost.peak_memory_bytes,
        "train_seconds": cost.train_seconds,
        "backend": record.backend,
        "continued": EARLIER in record.environment,
        "finished_at": record.finished_at,
    }
    if outcome is not None:
        row |= {
            "accuracy": 100 * outcome.test.correct / outcome.test.total,
            "correct": outcome.test.correct,
            "total": outcome.test.total,
            "validation_accuracy": 100 * outcome.validation.correct / outcome.validation.total,
            "selected_step": outcome.selected_step,
        }
    return row


def _run_row(run: RunRecord | AttemptedRun) -> dict[str, Any]:
    config = run.config
    return {
        "run_id": run.run_id,
        "task": _task(run),
        "dataset": run.dataset,
        "data_digest": run.data_digest,
        "profile": config.profile,
        "track": config.track,
        "variant": _variant(run),
        "seed": config.seed,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "layers": config.model.num_layers,
        "settings": settings_of(config),
    }
