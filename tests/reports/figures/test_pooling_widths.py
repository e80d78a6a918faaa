"""The figure of pooling widths, of a run that is really trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from lra.data.split import Split
from lra.errors import StoreError, UsageError
from lra.trained import TrainedRun
from reports.figures import pooling_widths
from reports.figures.pooling_widths import Supports, draw_supports, load_supports
from reports.figures.style import house_style, save
from reports.result_set import load_stores
from runners.cli.run import command as lra_run
from tests.reports.figures.helpers import clipped, is_tick
from tests.reports.synthetic import cell_config

TINY = {
    "name": "tiny", "title": "For tests", "source": "this test",
    "tasks": {"listops": {
        "data": {"train": 64, "validation": 32, "test": 32, "min_length": 4, "max_length": 24, "max_depth": 3},
        "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "max_length": 24},
        "train": {"batch_size": 8, "steps": 4, "eval_every": 2, "lr": 0.01},
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Really train two tiny runs, with `lra-run`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [
        "--attn", "contextpool,full", "--task", "listops", "--profile", str(folder / "tiny.yaml"),
        "--data-dir", str(folder / "home"), "--store", str(folder / "store"), "--device", "cpu",
        "--threads", "1", "--quiet",
    ]  # fmt: skip
    done = CliRunner().invoke(lra_run, command, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return folder, load_stores([folder / "store"])


def pick(results, variant):
    return next(record for record in results.records.values() if record.config.variant.name == variant)


@pytest.mark.nightly
def test_pooling_shows_the_widths_that_training_recorded(trained, tmp_path):
    folder, results = trained
    record = pick(results, "contextpool")
    store = results.stores[record.run_id]
    supports = load_supports(record, store, folder / "home", count=5)
    assert supports.layers == [0, 1]
    assert supports.indices == [0, 1, 2, 3, 4]
    for widths, names in zip(supports.sigma, supports.tokens, strict=True):
        assert widths.shape == (2, len(names))
        assert np.all(widths > 0)
        assert names[0] in {"[MIN", "[MAX", "[MED", "[SM"}
        assert names[-1] == "]"
    everything = load_supports(record, store, folder / "home", count=32)
    mean = np.concatenate([widths[0] for widths in everything.sigma]).mean()
    last = store.arrays(record.run_id)["curve.layer0.sigma_mean"][-1]  # over a batch of validation, not over test
    assert mean == pytest.approx(last, rel=0.5)
    with house_style():
        drawn = [draw_supports(supports, "a run", [0, 1]) for _ in range(3)]
    assert [t for t in clipped(drawn[0]) if not is_tick(t)] == []
    contents = [save(figure, tmp_path / f"{i}.svg", "svg").read_bytes() for i, figure in enumerate(drawn[1:])]
    assert contents[0] == contents[1]


def test_pooling_refuses_pairs_and_computes_as_the_run_did(trained, monkeypatch):
    folder, results = trained
    record = pick(results, "contextpool")
    arguments = (record, results.stores[record.run_id], folder / "home", 5)
    exact = load_supports(*arguments)
    real = pooling_widths.autocast
    monkeypatch.setattr(pooling_widths, "autocast", lambda device, _: real(device, "bfloat16"))
    rounded = load_supports(*arguments)
    assert not np.array_equal(rounded.sigma[0], exact.sigma[0])
    assert rounded.sigma[0] == pytest.approx(exact.sigma[0], rel=0.05)
    pairs = Split(tokens=np.ones(4, dtype=np.uint8), offsets=np.arange(5), labels=np.zeros(2, dtype=np.uint8))
    monkeypatch.setattr(TrainedRun, "data", lambda *_: SimpleNamespace(split=lambda _: pairs))
    with pytest.raises(UsageError, match="is of a task of pairs"):
        load_supports(*arguments)


def test_pooling_refuses_what_has_no_widths_and_weights_that_are_gone(trained):
    folder, results = trained
    full, pooled = pick(results, "full"), pick(results, "contextpool")
    store = results.stores[full.run_id]
    with pytest.raises(UsageError, match=r"'full' of run .* has no widths"):
        load_supports(full, store, folder / "home")
    lost = pooled.model_copy(update={"run_id": "0" * 64})
    with pytest.raises(
        StoreError,
        match=r"checkpoints of run 000000000000 are not in the store .* only its record; lra-run --config .*\.json",
    ):
        load_supports(lost, store, folder / "home")
    other = pooled.model_copy(update={"data_digest": "0" * 64})
    with pytest.raises(StoreError, match="holds other data"):
        load_supports(other, store, folder / "home")
    with pytest.raises(UsageError, match="ended without weights"):
        load_supports(pooled.model_copy(update={"outcome": None, "status": "diverged"}), store, folder / "home")


def test_hidden_tokens_are_not_among_those_that_are_counted():
    """As black pixels are by an option of Pathfinder; they have no width."""
    widths = [np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]), np.array([[5.0], [6.0]])]
    with house_style():
        figure = draw_supports(Supports(layers=[0, 1], sigma=widths, tokens=[None, None], indices=[0, 1]), "", [0])
    assert figure.axes[1].get_title(loc="left").startswith("3 tokens of 2 test examples")


def test_symbols_whose_numbers_nobody_wrote_down_have_no_names():
    split = Split(tokens=np.array([1, 2, 3]), offsets=np.array([0, 3]), labels=np.array([0]))
    config = cell_config()
    assert len(pooling_widths._names(config, split, 0)) == 3
    unknown = config.model_copy(update={"data": config.data | {"source": "nystromformer"}})
    assert pooling_widths._names(unknown, split, 0) is None
