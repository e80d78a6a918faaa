"""`--from`: a run that starts from the chosen weights of another one, and runs that learn nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lra import trained
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.errors import DataError, StoreError, UsageError
from lra.results.checkpoints import read_state, write_state
from lra.results.records import Store
from lra.tasks import get_task
from lra.trained import CLASSIFIER_LAYERS, TrainedRun, check_unseen, load_run
from runners.train.run import PreemptedRunError
from runners.train.summary import summaries, summary, summary_rows
from tests.reports.synthetic import add_other_outcome
from tests.runners.tiny_runs import TINY, execute, rewritten, tiny_data
from tests.runners.train.test_pretraining import StopAt


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


def tiny(start=None, track="open", **overrides):
    return resolve(
        task="listops", variant="full", profile=load_profile("quick"), seed=0, track=track,
        overrides={} if track == "matched" else TINY | overrides, start=start,
    )  # fmt: skip


FROZEN = {"train.lr": 1e-12}
"""A run that hardly learns, so that its weights are those that it began with."""


@pytest.fixture(scope="module")
def donor(data, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    record = execute(tiny(), data, store)
    return load_run(record.run_id[:10], store.root)


def weights_of(store, record):
    return read_state(store.checkpoint_folder(record.run_id) / "chosen.pt")["model"]


def test_a_run_starts_from_the_weights_of_another_with_a_new_classifier(data, donor):
    plain = execute(tiny(**FROZEN), data, donor.store)
    record = execute(tiny(donor.start(), **FROZEN), data, donor.store)
    assert record.run_id != plain.run_id
    theirs, ours, drawn = donor.weights(), weights_of(donor.store, record), weights_of(donor.store, plain)
    for name, value in ours.items():
        origin = drawn if name.startswith(CLASSIFIER_LAYERS) else theirs
        assert torch.allclose(value, origin[name], atol=1e-6)
    assert not torch.allclose(theirs["head.out.weight"], ours["head.out.weight"], atol=1e-4)
    assert not torch.allclose(drawn["blocks.0.mlp.0.weight"], ours["blocks.0.mlp.0.weight"], atol=1e-4)
    assert record.config.budget == 12
    assert load_run(record.run_id, donor.store.root).start().steps == 12


def test_a_run_that_started_from_another_goes_on_to_the_same_bits(data, donor, tmp_path):
    config = tiny(donor.start())
    unbroken = execute(config, data, Store(tmp_path / "unbroken"), start=donor)
    store = Store(tmp_path / "stopped")
    with pytest.raises(PreemptedRunError):
        execute(config, data, store, StopAt(2), start=donor)
    # The weights of the other run are not needed any more: they are not in this store.
    assert execute(config, data, store).outcome == unbroken.outcome
    with pytest.raises(UsageError, match="no single record"):
        execute(config, data, Store(tmp_path / "empty"))


def test_other_weights_than_those_of_the_id_are_refused(data, tmp_path):
    store = Store(tmp_path)
    record = execute(tiny(), data, store)
    config = tiny(load_run(record.run_id, store.root).start())
    other = config.model_copy(update={"start": config.start.model_copy(update={"weights": "0" * 64})})
    with pytest.raises(StoreError, match="has other weights"):
        execute(other, data, store)
    path = store.checkpoint_folder(record.run_id) / "chosen.pt"
    state = read_state(path)
    state["model"]["head.out.bias"] += 1.0
    write_state(path, state)
    with pytest.raises(StoreError, match="does not hold the weights"):
        execute(config, data, store)


def on_sizes(folder, **sizes):
    """A configuration on more or less of the same generated data, and that data."""
    config = tiny(**{f"data.{name}": value for name, value in sizes.items()})
    task = get_task("listops")
    return config, task.prepare(task.options.model_validate(config.data), folder, workers=1, progress=False)


@pytest.mark.parametrize("larger", ["train", "validation"])
def test_a_run_that_has_seen_the_test_examples_is_no_start(tmp_path, larger):
    """ListOps cuts its splits out of one stream, so more of one split holds what was another."""
    home, store = tmp_path / "home", Store(tmp_path / "store")
    longer = {"min_length": 8, "max_length": 16}
    ours = {"train": 64, "validation": 16, "test": 16, **longer}
    theirs = {"train": {"train": 128}, "validation": {"validation": 64}}[larger]
    config, data = on_sizes(home, **ours)
    source = execute(*on_sizes(home, **ours | theirs), store)
    start = load_run(source.run_id, store.root).start()
    with pytest.raises(UsageError, match="of the 16 test examples are among those that this run was trained on"):
        execute(config.model_copy(update={"start": start}), data, store)
    # Nor is one that started there.
    between = config.model_copy(update={"start": start, "data": {**config.data, "seed": 1}})
    task = get_task("listops")
    other = task.prepare(task.options.model_validate(between.data), home, workers=1, progress=False)
    second = execute(between, other, store)
    start = load_run(second.run_id, store.root).start()
    with pytest.raises(UsageError, match="test examples are among those"):
        execute(config.model_copy(update={"start": start}), data, store)


def test_a_start_that_was_trained_on_the_test_examples_is_refused_where_they_validate_too(tmp_path):
    """To choose a step by them is less, and the name of the data says it."""
    home, store = tmp_path / "home", Store(tmp_path / "store")
    config, data = on_sizes(home, train=64, validation=16, test=16)
    splits = {name: data.split(name) for name in ("train", "validation", "test")}
    taught = rewritten(data, home / "taught", splits | {"train": data.split("test")})
    source = load_run(execute(config, taught, store).run_id, store.root)
    validated = rewritten(data, home / "validated", splits | {"validation": data.split("test")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainedRun, "data", lambda *_: taught)
        with pytest.raises(UsageError, match="16 of the 16 test examples are among those"):
            check_unseen(source, validated)
        check_unseen(source, taught)


def test_cut_documents_are_looked_for_by_the_task_of_each_run_of_a_chain(data, monkeypatch):
    """Text crops and Pathfinder does not: a run between two that crop hides nothing."""
    cuts = []
    runs = {
        name: SimpleNamespace(
            record=SimpleNamespace(run_id=name, config=SimpleNamespace(task=task, start=start)),
            store=SimpleNamespace(root="store"),
            data=lambda home, name=name: SimpleNamespace(digest=name, split=lambda split: name),
        )
        for name, task, start in (("first", "text", None), ("second", "pathfinder", SimpleNamespace(run="first")))
    }

    def look(test, there, *, cut=False):
        if isinstance(there, str):
            cuts.append((there, cut))
        return np.zeros(len(test), dtype=bool)

    monkeypatch.setattr(trained, "found_in", look)
    monkeypatch.setattr(trained, "load_run", lambda run, store: runs[run])
    check_unseen(runs["second"], data)
    assert cuts == [("second", False)] * 2 + [("first", True)] * 2


def test_a_start_whose_data_is_gone_is_refused_since_it_may_hold_test_examples(data, tmp_path, monkeypatch):
    store = Store(tmp_path)
    source = load_run(execute(tiny(), data, store).run_id, store.root)

    def gone(self, home):
        raise DataError("no data")

    monkeypatch.setattr(TrainedRun, "data", gone)
    with pytest.raises(DataError, match=r"--from .* needs its data, since it may hold test examples: no data"):
        execute(tiny(source.start(), **FROZEN), data, store)


def test_another_model_is_refused(data, donor, tmp_path):
    with pytest.raises(UsageError, match=r"another model .*blocks\.1\..* the shape of nothing there"):
        execute(tiny(donor.start(), **{"model.num_layers": 2}), data, Store(tmp_path), start=donor)


def test_the_matched_track_does_not_admit_it(donor):
    with pytest.raises(UsageError, match="the steps of another run come on top"):
        tiny(donor.start(), track="matched")


def test_a_run_that_learnt_nothing_says_so_in_its_table_and_its_record(donor):
    record = donor.record
    low = record.model_copy(update={"baselines": {"chance": 0.0, "bag of tokens": 99.0}, "trained": False})
    text = summary([(low.config, low)], donor.store)
    assert "full, seed 0: trained: no, as it is not above the baseline bag of tokens (99.0)" in text
    assert "Known to help on ListOps: more steps" in text
    assert summary_rows([(low.config, low)], donor.store)[0]["trained"] is False
    assert record.trained is False  # 16 test examples
    correct = record.outcome.test.model_copy(update={"correct": 15})
    high = record.model_copy(update={"outcome": record.outcome.model_copy(update={"test": correct})})
    high = high.model_copy(update={"baselines": {"chance": 10.0}, "trained": True})
    assert "trained: no" not in summary([(high.config, high)], donor.store)
    with pytest.raises(ValueError, match="trained is False, which its score and its baselines do not say"):
        type(high).model_validate(high.model_dump() | {"trained": False})


def test_another_outcome_of_a_run_is_named_in_the_table_of_a_command(donor):
    rows = [(donor.record.config, donor.record)]
    assert "another outcome" not in summary(rows, donor.store)
    other = add_other_outcome(donor.store, donor.record.run_id)
    assert f"{other}: another outcome of the same run" in summary(rows, donor.store)
    other.unlink()


def test_rows_of_two_machines_have_the_cost_of_each_and_the_highest_baselines(donor):
    record = donor.record
    one = summary([(record.config, record)], donor.store)
    assert f"Memory: {record.cost.peak_memory_method}." in one
    cost = record.cost.model_copy(update={"peak_memory_method": "another counter"})
    config = record.config.model_copy(update={"seed": 1})
    raised = {name: value + 1 for name, value in record.baselines.items()}
    environment = record.environment | {"cpu": "another machine"}
    other = record.model_copy(update={"config": config, "cost": cost, "environment": environment, "baselines": raised})
    text = summary([(record.config, record), (config, other)], donor.store)
    assert f"seed 0: on {record.processor}; memory: {record.cost.peak_memory_method}." in text
    assert f"seed 1: on {other.processor}; memory: another counter." in text
    assert other.processor == "another machine"
    assert ", ".join(f"{name} {value:.1f}" for name, value in sorted(raised.items(), key=lambda item: item[1])) in text


def test_variants_of_one_title_are_told_apart_in_the_table_of_a_command(donor, monkeypatch):
    from runners.train import summary as module

    record = donor.record
    monkeypatch.setattr(module, "get_variant", lambda _: SimpleNamespace(title="Mixer "))
    other = record.config.model_copy(update={"variant": record.config.variant.model_copy(update={"name": "linear"})})
    rows = [(record.config, record), (other, "failed")]
    labels = [row["label"] for row in summary_rows(rows, donor.store)]
    assert [label.partition(" (")[2].partition(")")[0] for label in labels] == [record.config.variant.name, "linear"]
    assert all(f"({name})" in summary(rows, donor.store) for name in (record.config.variant.name, "linear"))


def test_tasks_of_one_title_are_told_apart_in_the_tables_of_a_command(donor, monkeypatch):
    from runners.train import summary as module

    record = donor.record
    monkeypatch.setattr(module, "get_task", lambda _: SimpleNamespace(info=SimpleNamespace(title="Mine", advice="")))
    tables = [[(record.config.model_copy(update={"task": task}), record)] for task in ("t1.py:Mine", "t2.py:Mine")]
    heads = [block.partition(" (")[2].partition(")")[0] for block in summaries(tables, donor.store).split("\n\nMine")]
    assert heads == ["t1.py:Mine", "t2.py:Mine"]
    assert summaries(tables[:1], donor.store).startswith(f"Mine ({record.dataset})")
