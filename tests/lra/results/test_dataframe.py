"""The data frame of a store: one row for each run."""

from lra.config.schema import VariantChoice
from lra.results import load
from lra.results.records import Store
from tests.reports.synthetic import add_other_outcome, add_run, cell_config


def test_a_second_outcome_of_a_run_is_a_problem_of_the_frame(tmp_path):
    record = add_run(tmp_path, 400)
    path = add_other_outcome(Store(tmp_path), record.run_id)
    assert load(tmp_path).attrs["problems"] == [f"{path}: another outcome of the same run"]


def test_a_file_with_the_name_of_another_outcome_is_read(tmp_path):
    """It may be a copy of the record, which is no other outcome, the record of another run, or none at all."""
    store, record, other = Store(tmp_path), add_run(tmp_path, 400), add_run(tmp_path, 500, seed=1)
    path = store.record_path(record.run_id).with_suffix(".conflict-1.json")
    for content, words in (
        (store.record_path(record.run_id).read_bytes(), ""),
        (store.record_path(other.run_id).read_bytes(), f"the record of another run, {other.run_id[:12]}"),
        (b"", "damaged"),
    ):
        path.write_bytes(content)
        line = f"{path}: under the name of another outcome: {words}"
        assert [line in problem for problem in load(tmp_path).attrs["problems"]] == [True] * bool(words)
        assert list(store.other_outcomes(record.run_id)) == [path] * bool(words)


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


def test_each_program_of_a_task_or_variant_has_its_own_title(tmp_path):
    """A file that was edited, and its title with it, or a colleague's file of the same name."""
    for number, title in enumerate(("Eight", "Sixteen")):
        config = cell_config(track=("matched", "open")[number])
        variant = VariantChoice(name="mine.py:band", options={}, origin=f"mine.py:band source {number}")
        origin = f"mine.py:Copy source {number}"
        config = config.model_copy(update={"task": "mine.py:Copy", "task_origin": origin, "variant": variant})
        add_run(
            tmp_path, 400 + number, config=config, title=title, variant_title=f"Band {title}", digest=64 * "ef"[number]
        )
    runs = load(tmp_path).sort_values("accuracy")
    assert runs["column"].tolist() == ["Eight eeeeeeee", "Sixteen ffffffff"]
    assert [label.partition(" [")[0] for label in runs["label"]] == ["Band Eight", "Band Sixteen"]


def test_data_of_one_name_is_told_apart_between_tables_too(tmp_path):
    for track, digest in (("matched", "a"), ("open", "b")):
        add_run(tmp_path, 400, track=track, digest=64 * digest)
    assert sorted(load(tmp_path)["column"]) == ["ListOps aaaaaaaa", "ListOps bbbbbbbb"]


def test_two_tasks_of_one_title_are_named_however_many_data_sets_they_have(tmp_path):
    """A column of the one would read as one more data set of the other."""
    for name, digest, size in (("t1.py:Copy", "a", 1000), ("t1.py:Copy", "b", 5000), ("t2.py:Copy", "c", 1000)):
        config = cell_config().model_copy(update={"task": name})
        add_run(tmp_path, 400, config=config, title="Copy", dataset=f"{size} examples", digest=64 * digest)
    assert sorted(load(tmp_path)["column"]) == [
        "Copy (t1.py:Copy) (1000 examples)",
        "Copy (t1.py:Copy) (5000 examples)",
        "Copy (t2.py:Copy)",
    ]
