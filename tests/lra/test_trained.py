"""A run that was trained, found again: the same weights, the same answers, the same data."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lra
from attention_zoo import available, get_variant
from lra import trained
from lra.config.schema import NUMERICS_VERSION
from lra.errors import DataError, StoreError, UsageError
from lra.results.envelope import pack_envelope
from lra.results.records import Store
from lra.tasks.listops.vocabulary import render
from lra.trained import TrainedRun
from reports.tables.locality import Looked
from runners.train.evaluate import evaluate
from runners.train.plan import read_config
from tests.runners.tiny_runs import execute, tiny, tiny_data

DEFAULT = ("full", "contextpool", "reformer")
"""Variants that every test run trains; the nightly one trains all."""
VARIANTS = [name for name in available() if get_variant(name).mixer.__module__.startswith(("attention_zoo", "context"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    record = execute(tiny(), data, Store(folder))
    return lra.load_run(record.run_id[:8], folder)


def answers(run, data):
    config = run.record.config
    return evaluate(
        run.model(),
        data.split("test"),
        device=torch.device("cpu"),
        precision=config.train.precision,
        padded_length=None,
        limit=config.model.max_length,
        max_tokens=4096,
    )


@pytest.mark.parametrize(
    "variant",
    [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.nightly) for name in VARIANTS],
)
def test_the_recorded_count_comes_again(variant, data, tmp_path):
    record = execute(tiny(variant), data, Store(tmp_path))
    score, right = answers(lra.load_run(Store(tmp_path).record_path(record.run_id)), data)
    assert score.correct == record.outcome.test.correct
    assert np.array_equal(right, Store(tmp_path).arrays(record.run_id)["test_correct"])


def test_a_model_of_another_numerics_version_is_told(run, monkeypatch):
    monkeypatch.setattr(trained, "NUMERICS_VERSION", NUMERICS_VERSION + 1)
    with pytest.warns(UserWarning, match=r"was made under numerics version 2; this is version 3"):
        run.model()


@pytest.mark.parametrize("by", ["id", "file"])
@pytest.mark.parametrize("fault", ["another seed", "another count"])
def test_a_record_that_is_not_what_was_asked_for_is_refused(data, tmp_path, by, fault):
    store = Store(tmp_path)
    ours, theirs = (execute(tiny(seed=seed), data, store) for seed in (0, 1))
    file = store.record_path(ours.run_id)
    asked = ours.run_id[:8] if by == "id" else file
    assert lra.load_run(asked, tmp_path).record == ours
    if fault == "another seed":
        file.write_bytes(store.record_path(theirs.run_id).read_bytes())
    else:
        body = ours.model_dump()
        body["outcome"]["test"]["correct"] += 1
        file.write_bytes(pack_envelope("record", body))
    with pytest.raises(StoreError, match=r"holds the record of another run|the bits do not say"):
        lra.load_run(asked, tmp_path)
    if fault == "another seed":
        with pytest.raises(StoreError, match="holds the record of another run"):
            read_config(str(file))
    with pytest.raises(UsageError, match="no such record"):
        lra.load_run("/x.json")


@pytest.mark.parametrize("place", ["results/{0}/best.json", "results/{0}/{1}.conflict-1.json", "{1}.json"])
def test_a_record_that_is_not_in_its_place_is_refused(data, tmp_path, place):
    """Nothing says then whether its number is that of the bits."""
    store = Store(tmp_path)
    run_id = execute(tiny(), data, store).run_id
    other = tmp_path / place.format(run_id[:2], run_id)
    other.write_bytes(store.record_path(run_id).read_bytes())
    with pytest.raises(StoreError, match=rf"{other.name} is not in its place in a store, as results/.*/{run_id}.json"):
        lra.load_run(other)


def test_all_shipped_variants_are_among_them():
    assert len(VARIANTS) >= 39
    assert set(DEFAULT) < set(VARIANTS)


def test_texts_get_the_answers_of_the_test_split(run, data):
    split = data.split("test")
    texts = [render(split.tokens_of(index)) for index in range(len(split))]
    _, right = answers(run, data)
    assert np.array_equal(run.predict(texts) == split.labels, right)
    assert run.predict([]).shape == (0,)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_texts_are_read_in_the_precision_of_the_run(precision, data, tmp_path, monkeypatch):
    record = execute(tiny(**{"train.precision": precision}), data, Store(tmp_path))
    seen = {}
    linear = torch.nn.functional.linear

    def spy(*arguments):
        seen.setdefault(reader, set()).add(torch.is_autocast_enabled("cpu"))
        return linear(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    run = lra.load_run(record.run_id, tmp_path)
    reader = "predict"
    run.predict(["[MAX 1 2 ]"])
    monkeypatch.setattr(TrainedRun, "data", lambda *_: data)
    reader = "locality"
    Looked(run, None).accuracy(2, 16, "hide")
    assert seen == {"predict": {precision == "bfloat16"}, "locality": {precision == "bfloat16"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("[MAX 1 x ]", "text 1: 'x' is not a ListOps token"), ("[MAX " + "1 " * 500 + "]", "text 1 has 502 tokens")],
)
def test_a_text_that_does_not_fit_is_named(run, text, message):
    with pytest.raises((DataError, UsageError), match=message):
        run.predict(["[MAX 1 2 ]", text])


def test_outputs_that_are_not_finite_are_no_answer(run, monkeypatch):
    """The largest of NaNs is class 0."""

    def model(tokens, mask):
        logits = torch.zeros(len(tokens), 10)
        logits[tokens.ne(0).sum(dim=1) > 4] = float("nan")
        return logits

    monkeypatch.setattr(TrainedRun, "model", lambda *_: model)
    assert run.predict(["[MAX 1 2 ]"]).tolist() == [0]
    with pytest.raises(UsageError, match="text 1: the outputs of the model are not finite"):
        run.predict(["[MAX 1 2 ]", "[MAX 1 2 3 ]"])


def test_one_text_alone_is_not_taken_for_a_list_of_its_characters(run):
    with pytest.raises(UsageError, match=r"for one text, write \[text\]"):
        run.predict("12")


def test_what_is_not_there_is_told(run, tmp_path):
    with pytest.raises(UsageError, match="begins with 'zz'"):
        lra.load_run("zz", run.store.root)
    with pytest.raises(UsageError, match="no such record"):
        lra.load_run(tmp_path / "x.json")
    with pytest.raises(StoreError, match="only its record; lra-run --config"):
        TrainedRun(record=run.record, store=Store(tmp_path)).model()


def test_weights_of_another_run_are_refused(run, data, tmp_path):
    other = execute(tiny(seed=1), data, Store(tmp_path))
    path = Store(tmp_path).checkpoint_folder(run.record.run_id) / "chosen.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes((Store(tmp_path).checkpoint_folder(other.run_id) / "chosen.pt").read_bytes())
    with pytest.raises(StoreError, match="does not hold the weights that run"):
        TrainedRun(record=run.record, store=Store(tmp_path)).model()


def test_the_records_of_a_store_are_a_data_frame(run):
    frame = lra.load_results(run.store.root)
    assert frame["run_id"].tolist() == [run.record.run_id]
    assert frame["label"].tolist() == ["Full attention"]


def test_the_page_shows_what_works(run, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "trained-models.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "lra-results").symlink_to(run.store.root)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace('"RUN"', repr(run.record.run_id[:10])), names)
    assert not names["model"].training
    assert "Full attention" in capsys.readouterr().out
