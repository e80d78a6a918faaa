"""The order of the rows of a table."""

import pytest

from lra.errors import UsageError
from reports.tables import accuracy, depth, head_to_head, seeds, sort_rows
from tests.reports.synthetic import add_run, five_tasks, made

IN_ORDER = {
    "score": ["full", "contextpool", "linear", "Unheard of", "local", "contextpool_conv_only"],
    "family": ["contextpool", "full", "local", "linear", "Unheard of", "contextpool_conv_only"],
    "name": ["contextpool", "contextpool_conv_only", "full", "linear", "local", "Unheard of"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for place, variant in enumerate(("full", "contextpool", "linear", "unheard_of", "local")):
        for task in ("text", "listops"):
            title = "Unheard of" if variant == "unheard_of" else None
            add_run(folder, 500 - 10 * place, variant=variant, task=task, variant_title=title)
    add_run(folder, 300, variant="contextpool_conv_only", task="text")  # and no number on ListOps
    return folder


@pytest.mark.parametrize("by", IN_ORDER)
def test_rows_of_a_table_by_tasks(store, by):
    table = made(accuracy, store)
    done = sort_rows(table, by)
    assert done.cells.index.tolist() == [*IN_ORDER[by], "Chance", "Majority"]
    assert done.values.index.tolist() == done.cells.index.tolist()
    for name in done.cells.index:
        assert done.cells.loc[name].tolist() == table.cells.loc[name].tolist()
    families = (
        "Sorted by family: attention (contextpool, full); sparse (local); kernel (linear); other (Unheard of); "
        "control (contextpool_conv_only)."
    )
    assert (families in done.notes) == (by == "family")


def test_rows_of_a_long_table_within_their_tasks(store):
    cells = sort_rows(made(seeds, store), "score").cells
    assert cells["task"].tolist() == ["ListOps"] * 5 + ["Text"] * 6
    assert cells["variant"].tolist() == [*IN_ORDER["score"][:5], *IN_ORDER["score"]]
    assert cells.index.tolist() == list(range(11))


def test_depths_of_one_variant_stay_together_by_name_and_not_by_score(tmp_path):
    for layers, right in ((1, 300), (2, 500)):
        add_run(tmp_path, right, layers=layers, track="open")
        add_run(tmp_path, right + 50, layers=layers, track="open", variant="linear")
    table = made(depth, tmp_path, track="open")
    assert sort_rows(table, "name").cells["variant"].tolist() == ["full", "full", "linear", "linear"]
    assert sort_rows(table, "score").cells["layers"].tolist() == ["2", "2", "1", "1"]


def test_a_table_with_one_order_says_so(tmp_path):
    five_tasks(tmp_path)
    with pytest.raises(UsageError, match="one order only"):
        sort_rows(made(head_to_head, tmp_path, "full", "contextpool"), "name")
