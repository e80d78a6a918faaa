"""The captions of tables, from stores of made-up records."""

from lra.results.records import EARLIER
from reports.tables import accuracy, head_to_head
from tests.reports.synthetic import add_attempt, add_run, five_tasks, made


def test_captions_count_the_seeds_behind_the_numbers(tmp_path):
    five_tasks(tmp_path, seeds=3, tasks=["listops"])
    assert made(accuracy, tmp_path).caption.endswith(", 3 seeds")
    for seed in (3, 4):
        add_run(tmp_path, 400, seed=seed)
    add_run(tmp_path, None, seed=5)
    assert made(accuracy, tmp_path).caption.endswith(", 3 to 5 seeds")
    assert made(head_to_head, tmp_path, "full", "contextpool").caption.endswith(", 3 seeds")


def test_runs_that_two_environments_took_part_in_are_named(tmp_path):
    joined = {"device": "cpu", "threads": 2, EARLIER: [{"device": "cpu", "threads": 1}]}
    add_run(tmp_path, 400, seed=0)
    add_run(tmp_path, 410, seed=1, environment=joined)
    add_attempt(tmp_path, "failed", seed=2)
    told = [note for note in made(accuracy, tmp_path).notes if "environment" in note]
    assert told == ["Continued under another environment, on which the last bits may depend: full on ListOps, seed 1."]
