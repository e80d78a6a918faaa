"""The data frame of a store: one row for each run."""

from lra.results import load
from tests.reports.synthetic import add_run


def test_a_second_outcome_of_a_run_is_a_problem_of_the_frame(tmp_path):
    record = add_run(tmp_path, 400)
    path = tmp_path / "results" / record.run_id[:2] / f"{record.run_id}.conflict-1.json"
    path.write_text("{}")
    assert load(tmp_path).attrs["problems"] == [f"{path}: another outcome of the same run"]


def test_a_run_under_two_numerics_versions_is_one_row(tmp_path):
    add_run(tmp_path, 400, numerics_version=1)
    add_run(tmp_path, 400, numerics_version=2)
    add_run(tmp_path, 500, seed=1)
    runs = load(tmp_path)
    assert runs.groupby("label")["accuracy"].agg(["mean", "count"]).to_numpy().tolist() == [[45.0, 2]]
    assert runs.attrs["problems"] == []
    add_run(tmp_path, 501, seed=1, numerics_version=1)
    runs = load(tmp_path)
    assert sorted(runs["accuracy"]) == [40.0, 50.0]
    assert ["another outcome" in problem for problem in runs.attrs["problems"]] == [True]
