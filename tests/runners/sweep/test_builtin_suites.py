"""The suites about ContextPool, run whole in small: their variants and depths on a tiny task, to tables."""

import pytest

from lra.config.suites import expand, load_suite
from lra.results.records import RunRecord, Store
from reports.result_set import load_stores
from reports.tables import depth
from reports.tables.comparisons import ablation
from tests.runners.tiny_runs import execute, outcomes, tiny, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


def run_small(suite, data, folder):
    """Run every run of a suite with its variant and depth kept, and the rest made tiny."""
    base = tiny(**{"train.steps": 2, "train.eval_every": 2})
    ran = 0
    for run in expand(load_suite(suite)):
        model = base.model.model_copy(update={"num_layers": run.model.num_layers})
        small = base.model_copy(update={"variant": run.variant, "model": model, "seed": run.seed})
        if run.seed == 0:
            assert isinstance(execute(small, data, Store(folder)), RunRecord)
            ran += 1
    return ran


@pytest.mark.nightly
def test_the_ablation_of_contextpool_runs_and_makes_its_table(data, tmp_path):
    assert run_small("contextpool_ablation", data, tmp_path) == 1 + 8 + 4 + 3 + 2
    loaded = load_stores([tmp_path])
    assert {status for status, _ in outcomes(Store(tmp_path)).values()} == {"ok"}
    assert len(ablation(loaded, "quick", "open", "contextpool").cells) == 8 + 4 + 3


@pytest.mark.nightly
def test_the_depths_run_and_make_their_table(data, tmp_path):
    assert run_small("depth", data, tmp_path) == 2 * 6
    table = depth(load_stores([tmp_path]), "quick", "open")
    assert sorted(zip(table.cells["variant"], table.cells["layers"], strict=True)) == [
        (variant, str(layers)) for variant in ("ContextPool", "Full attention") for layers in range(1, 7)
    ]
    assert "-" not in set(table.cells[["test accuracy (%)", "operations (MFLOPs)"]].to_numpy().ravel())
