"""The captions of tables, from stores of made-up records."""

from lra.results.records import EARLIER
from reports.cli import NAMES_TAKEN, PRESETS, make_tables
from reports.result_set import load_stores
from reports.tables import accuracy, head_to_head
from tests.reports.synthetic import add_attempt, add_measurement, add_run, five_tasks, made


def test_captions_count_the_seeds_behind_the_numbers(tmp_path):
    five_tasks(tmp_path, seeds=3, tasks=["listops"])
    assert made(accuracy, tmp_path).caption.endswith(", 3 seeds")
    for seed in (3, 4):
        add_run(tmp_path, 400, seed=seed)
    add_run(tmp_path, None, seed=5)
    assert made(accuracy, tmp_path).caption.endswith(", 3 to 5 seeds")
    assert made(head_to_head, tmp_path, "full", "contextpool").caption.endswith(", 3 seeds")


def test_captions_are_short_and_the_details_are_notes(tmp_path):
    five_tasks(tmp_path, variants=("full", "contextpool"))
    add_measurement(tmp_path, "full", 512, seconds=0.5, mib=10)
    results = load_stores([tmp_path])
    tables = [
        table
        for preset in set(PRESETS) - {"depth", "ablation", "probes", "calibration"}
        for table in make_tables(preset, ("full", "contextpool")[: NAMES_TAKEN.get(preset, 0)], results)
    ]
    assert len(tables) == 7
    assert [table.caption for table in tables if len(table.caption.split()) >= 20] == []
    assert all("Trained for 1500 steps on cpu." in table.notes for table in tables if "length" not in table.caption)
    assert len({table.name for table in tables}) == 7


def test_runs_that_two_environments_took_part_in_are_named(tmp_path):
    joined = {"device": "cpu", "threads": 2, EARLIER: [{"device": "cpu", "threads": 1}]}
    add_run(tmp_path, 400, seed=0)
    add_run(tmp_path, 410, seed=1, environment=joined)
    add_attempt(tmp_path, "failed", seed=2)
    told = [note for note in made(accuracy, tmp_path).notes if note.startswith("Continued")]
    assert told == ["Continued under another environment, on which the last bits may depend: full on ListOps, seed 1."]
