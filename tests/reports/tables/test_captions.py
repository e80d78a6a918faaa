"""The captions of tables, from stores of made-up records."""

from reports.tables import accuracy, head_to_head
from tests.reports.synthetic import add_run, five_tasks, made


def test_captions_count_the_seeds_behind_the_numbers(tmp_path):
    five_tasks(tmp_path, seeds=3, tasks=["listops"])
    assert made(accuracy, tmp_path).caption.endswith(", 3 seeds")
    for seed in (3, 4):
        add_run(tmp_path, 400, seed=seed)
    add_run(tmp_path, None, seed=5)
    assert made(accuracy, tmp_path).caption.endswith(", 3 to 5 seeds")
    assert made(head_to_head, tmp_path, "full", "contextpool").caption.endswith(", 3 seeds")
