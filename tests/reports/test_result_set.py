"""Reading of several stores as one."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lra.config.schema import VariantChoice
from lra.errors import DamagedFileError, StoreError
from lra.results import load
from lra.results.dataframe import record_frame
from lra.results.records import Store
from reports import html_page, result_set
from reports.result_set import load_stores
from reports.tables import accuracy, head_to_head
from tests.reports.synthetic import add_attempt, add_measurement, add_run, cell_config

PLACES = {"track": "open", "profile": "mini"}


def test_two_stores_are_read_as_one_and_disagreements_are_told(tmp_path):
    for part, right in (("a", 400), ("b", 401)):
        add_run(tmp_path / part, right)
    add_run(tmp_path / "b", 500, seed=1, bits=np.arange(1000) >= 500)
    results = load_stores([tmp_path / "a", tmp_path / "b"])
    assert len(results.records) == 2
    assert [problem for problem in results.problems if "another outcome" in problem] == results.problems
    assert len(results.problems) == 1


def test_a_store_under_two_spellings_is_read_once(tmp_path, monkeypatch):
    add_run(tmp_path / "store", 400)
    (path,) = (tmp_path / "store").glob("results/*/*.json")
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "link").symlink_to("store")
    monkeypatch.chdir(tmp_path)
    spellings = [Path("store"), tmp_path / "store", Path("link")]
    assert len(load_stores(spellings).problems) == 1


def test_runs_share_a_row_where_a_numerics_version_left_their_numbers_alone(tmp_path):
    for version, right in ((1, 400), (2, 410)):
        add_run(tmp_path, right, variant="full", seed=version, numerics_version=version)
        add_run(tmp_path, right, variant="reformer", seed=version, numerics_version=version)
    config = cell_config()
    dropping = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.1})})
    assert [dropping.numbers_until(version) for version in (1, 2, 3)] == [1, 2, 3]
    assert [config.numbers_until(version) for version in (1, 2, 3)] == [2, 2, 3]
    rows = accuracy(load_stores([tmp_path]), "quick", "matched").cells["ListOps"]
    assert sorted(rows.filter(regex="full|reformer")) == ["40.00 (1)", "40.50 ± 0.71 (2)", "41.00 (1)"]


@pytest.mark.parametrize("later", [None, "full", "linear"])
def test_runs_of_one_numerics_version_share_a_row_whatever_their_dropout(later, tmp_path):
    """Version 2 changed dropout alone, so that the run without it has the same numbers under both."""
    for task, dropout in (("listops", 0.0), ("text", 0.1)):
        config = cell_config(task=task)
        config = config.model_copy(update={"model": config.model.model_copy(update={"dropout": dropout})})
        add_run(tmp_path, 400, config=config, numerics_version=1)
    if later:
        add_run(tmp_path, 400, config=cell_config(task="listops", variant=later, seed=1), numerics_version=2)
    frame = load_stores([tmp_path]).frame()
    shown = frame[frame["variant"] == "full"].sort_values(["task", "seed"])["label"].tolist()
    first, second = "full [numerics_version=1]", "full [numerics_version=2]"
    assert shown == {None: ["full"] * 2, "full": [second, second, first], "linear": [first] * 2}[later]


def test_a_numerics_version_that_differs_between_tasks_alone_is_named_too(tmp_path):
    """Else one row, with an average, would be of two programs."""
    labels = {}
    for variant in ("full", "reformer"):
        for task, version in (("listops", 1), ("text", 2)):
            add_run(tmp_path / variant, 400, task=task, variant=variant, numerics_version=version)
        labels[variant] = sorted(load_stores([tmp_path / variant]).frame()["label"])
    assert labels["full"] == ["full", "full"], "its numbers are the same under both"
    assert labels["reformer"] == ["reformer [numerics_version=1]", "reformer [numerics_version=2]"]


@pytest.mark.parametrize("differs", ["window", "program", "numerics", "file", "nothing"])
@pytest.mark.parametrize("place", ["track", "profile"])
def test_a_variant_of_a_file_that_differs_between_tables_is_named_by_that(place, differs, tmp_path):
    """Its defaults are not known here, so that neither of the two is the bare name."""
    for first, where in enumerate([{place: "matched" if place == "track" else "quick"}, {place: PLACES[place]}]):
        options = {"window": 8 if first and differs == "window" else 4}
        origin = f"mine.py:band source {'b' if first and differs == 'program' else 'a'}"
        name = "other.py:band" if first and differs == "file" else "mine.py:band"
        variant = VariantChoice(name=name, options=options, origin=origin)
        config = cell_config(**where).model_copy(update={"variant": variant})
        version = 1 if first and differs == "numerics" else 2
        add_run(tmp_path, 400, config=config, variant_title="Band", numerics_version=version)
    results = load_stores([tmp_path])
    parts = [results.for_profile(*where) for where in results.profiles()]
    shown = {
        "window": ["Band [window=4]", "Band [window=8]"],
        "program": [f'Band [origin="mine.py:band source {each}"]' for each in "ab"],
        "numerics": ["Band [numerics_version=1]", "Band [numerics_version=2]"],
        "file": ["Band (mine.py:band)", "Band (other.py:band)"],
        "nothing": ["Band", "Band"],
    }[differs]
    assert len(parts) == 2
    assert sorted(label for part in parts for label in part.frame()["label"]) == shown
    assert sorted(results.frame()["label"]) == shown
    assert sorted(record_frame(results.records.values())["label"]) == shown


def test_of_one_run_under_two_numerics_versions_the_newest_record_counts(tmp_path):
    for version, right in ((1, 400), (2, 400)):
        add_run(tmp_path, right, numerics_version=version)
    results = load_stores([tmp_path])
    assert [record.numerics_version for record in results.records.values()] == [2]
    assert results.problems == []
    for store, version, speed in (("mine", 1, 500.0), ("theirs", 2, 900.0)):
        add_run(tmp_path / store, 400, numerics_version=version, speed=speed)
    results = load_stores([tmp_path / "mine", tmp_path / "theirs"])
    assert [record.cost.tokens_per_second for record in results.records.values()] == [900.0]
    (problem,) = results.problems
    assert problem.endswith(", the same run, whose cost is shown")
    add_run(tmp_path, 300, seed=1, numerics_version=1)
    add_run(tmp_path, 301, seed=1, numerics_version=2)
    assert ["another outcome" in problem for problem in load_stores([tmp_path]).problems] == [True]


@pytest.mark.parametrize("read", [lambda root: load_stores([root]).problems, lambda root: load(root).attrs["problems"]])
def test_other_answers_under_an_older_version_are_another_outcome(tmp_path, read):
    for version in (1, 2):
        add_run(tmp_path, 400, numerics_version=version, bits=np.roll(np.arange(1000) < 400, version))
    (problem,) = read(tmp_path)
    assert "another outcome than" in problem


def test_bits_and_curves_are_those_of_the_records_that_were_read(tmp_path):
    """Another outcome may take the place of the first between the two readings, as a record that is run again."""
    bits = np.arange(1000) < 400
    for folder, right in (("store", bits), ("other", bits[::-1])):
        for variant in ("full", "linear"):
            add_run(tmp_path / folder, 400, variant=variant, bits=right)
    results = load_stores([tmp_path / "store"])
    run_id = next(iter(results.records))
    assert np.array_equal(results.arrays(run_id)["test_correct"], bits)
    shutil.copytree(tmp_path / "other", tmp_path / "store", dirs_exist_ok=True)
    with pytest.raises(DamagedFileError, match="not what its record says"):
        head_to_head(results, "quick", "matched", "full", "linear")


def test_a_renamed_note_is_named_whatever_its_new_number(tmp_path):
    for status in ("oom", "failed"):
        add_attempt(tmp_path, status)
    first, second = sorted(tmp_path.glob("attempts/*/*.json"))
    assert [attempt.status for attempt in load_stores([tmp_path]).attempts.values()] == ["failed"]
    for name in ("0-host-1.json", "7-host-1.json"):
        moved = second.rename(first.with_name(name))
        assert ["written as attempt 2" in problem for problem in load_stores([tmp_path]).problems] == [True]
        moved.rename(second)


def test_an_attempt_of_a_run_that_has_its_record_under_another_numerics_version_is_no_further_run(tmp_path):
    add_run(tmp_path, 400, numerics_version=1)
    add_run(tmp_path, 400, numerics_version=2)
    of_first = cell_config().run_id("d" * 64, 1)
    add_attempt(tmp_path, "ok", numerics_version=1)
    assert (tmp_path / "attempts" / of_first).is_dir()
    add_run(tmp_path, 410, seed=1)
    add_attempt(tmp_path, "oom", seed=1, numerics_version=1)
    for version in (1, 2):
        add_attempt(tmp_path, "oom" if version == 1 else "failed", seed=2, numerics_version=version)
    results = load_stores([tmp_path])
    assert [attempt.status for attempt in results.attempts.values()] == ["failed"]
    assert accuracy(results, "quick", "matched").cells.loc["full", "ListOps"] == "40.50 ± 0.71 (2/3), failed (1/3)"


def edited_recipe(**changes):
    """Return the run of a profile of somebody else, whose file says something else than before."""
    config = cell_config(profile="mine")
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def test_recipes_of_one_profile_that_differ_never_share_a_table(tmp_path, monkeypatch):
    add_run(tmp_path, 400, config=edited_recipe())
    add_run(tmp_path, 900, config=edited_recipe(lr=0.5))
    add_run(tmp_path, 500, profile="mine", task="text")
    results = load_stores([tmp_path])
    assert results.profiles() == [("mine", "matched"), ("mine [lr=0.001]", "matched"), ("mine [lr=0.5]", "matched")]
    tables = [accuracy(results, *place) for place in results.profiles()]
    assert [table.cells.iloc[0].tolist() for table in tables] == [["50.00 (1)"], ["40.00 (1)"], ["90.00 (1)"]]
    assert "profile mine [lr=0.5], matched track" in tables[2].caption
    alone = results.filter(
        lambda config: config.train.lr == 0.5
    )  # a selection of one recipe has one table, and says so
    assert alone.profiles() == [("mine", "matched")]
    note = "ListOps with lr=0.5: the stores also hold runs of profile mine with another recipe there."
    assert note in accuracy(alone, "mine", "matched").notes
    text = results.filter(lambda config: config.task == "text")
    assert "another recipe" not in " ".join(accuracy(text, "mine", "matched").notes)
    monkeypatch.setattr(html_page, "all_figures", lambda results: [])  # the text of the page is wanted, quickly
    page = html_page.page(results, "a command")
    assert all(f"<td>mine [lr={lr}], matched</td>" in page for lr in (0.001, 0.5))  # also in the list of runs


def test_recipes_of_the_open_track_share_a_table_that_names_what_differs(tmp_path):
    add_run(tmp_path, 400, variant="full", track="open", layers=2)
    add_run(tmp_path, 410, variant="linear", track="open", layers=3)
    results = load_stores([tmp_path])
    assert results.profiles() == [("quick", "open")]
    assert sorted(results.frame()["label"]) == ["full [num_layers=2]", "linear [num_layers=3]"]


def test_seeds_that_nobody_asked_for_are_not_missing(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 400, seed=seed)
    add_run(tmp_path, 410, variant="linear")
    cells = accuracy(load_stores([tmp_path]), "quick", "matched").cells
    assert cells["ListOps"].tolist()[:2] == ["40.00 ± 0.00 (2)", "41.00 (1)"]
    asked = replace(load_stores([tmp_path]), seeds=frozenset(range(2)))
    assert accuracy(asked, "quick", "matched").cells.loc["linear", "ListOps"] == "41.00 (1/2)"


def test_the_frame_from_python_has_the_rows_of_the_tables(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 400 + seed, seed=seed)
        add_run(tmp_path, 700, seed=seed, options={"rotary": True})
        add_run(tmp_path, 800, seed=seed, track="open")
    frame = load(tmp_path)
    means = frame.groupby(["profile", "track", "column", "label"])["accuracy"].mean()
    assert means.to_dict() == {
        ("quick", "matched", "ListOps", "full"): 40.05,
        ("quick", "matched", "ListOps", "full [rotary=True]"): 70.0,
        ("quick", "open", "ListOps", "full"): 80.0,
    }
    assert (frame.groupby(["profile", "track", "column", "label", "seed"]).size() == 1).all()


def test_a_note_of_an_attempt_under_another_name_is_named(tmp_path):
    """Without it, the lost seed would be in no count."""
    add_attempt(tmp_path, "oom")
    (note,) = tmp_path.glob("attempts/*/*.json")
    note.rename(note.with_name(f"copy-of-{note.name}"))
    results = load_stores([tmp_path])
    assert results.attempts == {}
    assert [f"copy-of-{note.name} was written as attempt 1" in problem for problem in results.problems] == [True]


def test_a_note_that_does_not_say_what_it_tried_counts_for_the_run_of_an_earlier_one(tmp_path):
    """Drivers of sweeps once wrote such notes of runs that they ended."""
    add_attempt(tmp_path, "preempted")
    Store(tmp_path).log_attempt(cell_config().run_id("d" * 64), "timeout", "no end within 7 s", {})
    results = load_stores([tmp_path])
    assert [(each.status, each.config) for each in results.attempts.values()] == [("timeout", cell_config())]
    assert results.problems == []
    newest = sorted(tmp_path.glob("attempts/*/*.json"))[-1].with_name("9-a-b.json")
    newest.write_text("{}")
    results = load_stores([tmp_path])
    assert results.attempts == {}
    assert [problem.startswith(f"{newest}: ") for problem in results.problems] == [True]


def test_a_run_whose_record_was_removed_is_named_once_and_no_lost_run(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400 + seed, seed=seed)
        add_attempt(tmp_path, "ok", seed=seed)
    add_attempt(tmp_path, "diverged", variant="linear")
    add_attempt(tmp_path, "oom", variant="linear", seed=1)
    gone, damaged = (Store(tmp_path).record_path(cell_config(seed=seed).run_id("d" * 64)) for seed in (1, 2))
    gone.unlink()
    results = load_stores([tmp_path])
    assert accuracy(results, "quick", "matched").cells["ListOps"].tolist()[:2] == ["40.10 ± 0.14 (2)", "OOM (1/1)"]
    suite = accuracy(replace(results, seeds=frozenset(range(3))), "quick", "matched")
    assert suite.cells.loc["full", "ListOps"] == "40.10 ± 0.14 (2/3)"
    ended = "its last attempt ended ({}), but its record is not here"
    ids = {"ok": gone.stem, "diverged": cell_config(variant="linear").run_id("d" * 64)}
    lines = [f"{tmp_path / 'attempts' / run_id}: {ended.format(status)}" for status, run_id in ids.items()]
    assert sorted(results.problems) == sorted(lines)
    shutil.copytree(tmp_path / "attempts", tmp_path / "copy" / "attempts")
    assert len(load_stores([tmp_path, tmp_path / "copy"]).problems) == 2
    add_run(tmp_path / "copy", 401, seed=1)  # its record is in another store
    add_run(tmp_path / "copy", None, variant="linear", numerics_version=1)
    assert load_stores([tmp_path, tmp_path / "copy"]).problems == []
    damaged.write_text("{}")
    problems = load_stores([tmp_path, tmp_path / "copy"]).problems
    assert [problem for problem in problems if "its last attempt ended" in problem] == []
    assert len(problems) == 1


def test_a_run_that_was_executed_in_two_stores_is_named_since_one_cost_is_shown(tmp_path):
    for folder, speed in (("a", 1000.0), ("b", 2000.0), ("c", 1000.0)):
        add_run(tmp_path / folder, 400, speed=speed)
    problems = load_stores([tmp_path / folder for folder in "abc"]).problems
    assert ["executed apart from the one in" in problem and "/b/" in problem for problem in problems] == [True]


@pytest.mark.parametrize("what", ["bits", "curve", "diverged"])
def test_a_run_with_other_numbers_in_another_store_is_another_outcome(tmp_path, what):
    for folder, other in (("a", 0), ("b", 1)):
        bits = np.roll(np.arange(1000) < 400, other if what == "bits" else 0)
        record = add_run(tmp_path / folder, None if what == "diverged" else 400, bits=bits)
        store = Store(tmp_path / folder)
        arrays = store.arrays(record.run_id)
        if other and what != "bits":
            store.record_path(record.run_id).unlink()
            changed = {"detail": "the loss is not finite at step 3"} if what == "diverged" else {}
            more = {"curve.train_loss": np.full(5, 2.0)} if what == "curve" else {}
            store.publish(record.model_copy(update=changed), {**arrays, **more})
        elif what == "curve":
            store.record_path(record.run_id).unlink()
            store.publish(record, {**arrays, "curve.train_loss": np.full(5, 1.0)})
    (problem,) = load_stores([tmp_path / "a", tmp_path / "b"]).problems
    assert f"another outcome than in {tmp_path / 'a'}" in problem


def test_a_run_that_ends_while_stores_are_read_is_not_among_the_lost(tmp_path, monkeypatch):
    """Its note is written after its record, which was not there when the records were listed."""
    add_run(tmp_path, 400)
    add_attempt(tmp_path, "oom", seed=2)
    listed, read = result_set.conflicts, Store.records

    def end_a_run(files):
        add_run(tmp_path, 410, seed=1)
        add_attempt(tmp_path, "ok", seed=1)
        add_measurement(tmp_path, "full", 1024, seconds=0.1, mib=10)
        return listed(files)

    def end_another(store, files=None):
        add_run(tmp_path, 420, seed=3)
        return read(store, files)

    monkeypatch.setattr(result_set, "conflicts", end_a_run)
    monkeypatch.setattr(Store, "records", end_another)
    results = load_stores([tmp_path])
    assert [record.config.seed for record in results.records.values()] == [0]
    assert [attempt.config.seed for attempt in results.attempts.values()] == [2]
    assert results.measurements == ()


@pytest.mark.parametrize("swapped", [True, False])
def test_stores_that_change_while_they_are_read_give_no_numbers(tmp_path, monkeypatch, swapped):
    """A store that is replaced, or a run that moves from one store to another: it would be in no listing."""
    near, far = tmp_path / "near", tmp_path / "far"
    moved = Store(far).record_path(add_run(far, 410, seed=1).run_id)
    add_run(near, 400)
    add_attempt(near, "oom", seed=2)
    listed = result_set.conflicts

    def change(files):
        of_near = any(near in path.parents for path in files)
        if of_near and swapped:
            near.rename(tmp_path / "old")
            far.rename(near)
        elif of_near:
            target = near / moved.relative_to(far)
            target.parent.mkdir(parents=True, exist_ok=True)
            moved.rename(target)
        return listed(files)

    stores = [near] if swapped else [near, far]
    assert len(load_stores(stores).records) == len(stores)
    monkeypatch.setattr(result_set, "conflicts", change)
    with pytest.raises(StoreError, match=r"\.json: changed while the store was read; run the command again$"):
        load_stores(stores)


def test_a_report_is_of_a_moment_at_which_nothing_was_added(tmp_path, monkeypatch):
    """A note of a lost run and then a record are written after the notes were listed and before the records are."""
    add_run(tmp_path, 400)
    listed, times = result_set.visible, itertools.count(1)

    def write_meanwhile(folder, pattern, kind):
        if pattern == result_set.ENTRIES["records"] and next(times) == 2:
            add_attempt(tmp_path, "oom", seed=1)
            add_run(tmp_path, 420, seed=2)
        return listed(folder, pattern, kind)

    monkeypatch.setattr(result_set, "visible", write_meanwhile)
    results = load_stores([tmp_path])
    assert sorted(record.config.seed for record in results.records.values()) == [0, 2]
    assert [attempt.config.seed for attempt in results.attempts.values()] == [1]


def test_stores_that_never_stand_still_give_no_numbers(tmp_path, monkeypatch):
    add_run(tmp_path, 400)
    listed, seeds = result_set.visible, itertools.count(1)

    def write_meanwhile(folder, pattern, kind):
        if pattern == result_set.ENTRIES["records"]:
            add_attempt(tmp_path, "oom", seed=next(seeds))
        return listed(folder, pattern, kind)

    monkeypatch.setattr(result_set, "visible", write_meanwhile)
    with pytest.raises(StoreError, match=r": changes faster than it can be listed; run the command again$"):
        load_stores([tmp_path])


def test_a_run_that_was_lost_in_two_stores_in_two_ways_is_named(tmp_path):
    for folder, status in (("a", "timeout"), ("b", "oom"), ("c", "timeout")):
        add_attempt(tmp_path / folder, status)
    results = load_stores([tmp_path / folder for folder in "abc"])
    assert [attempt.status for attempt in results.attempts.values()] == ["timeout"]
    (problem,) = results.problems
    assert problem.startswith(f"{tmp_path / 'b' / 'attempts'}/")
    assert f" than in {tmp_path / 'a' / 'attempts'}/" in problem
