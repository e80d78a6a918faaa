"""The table of seeds, from stores of made-up records."""

from dataclasses import replace

from reports.result_set import load_stores
from reports.tables import accuracy, seeds
from tests.reports.synthetic import add_run, made


def test_one_seed_is_a_preview_with_wilsons_interval(tmp_path):
    add_run(tmp_path, 400)
    assert "PREVIEW" in made(accuracy, tmp_path).notes[0]
    row = made(seeds, tmp_path).cells.iloc[0]
    assert row["interval (%)"] == "37.01 to 43.07 (Wilson)"
    assert row["above chance"] == "1/1"


def test_a_row_says_how_many_of_its_runs_have_a_number(tmp_path):
    for seed, correct in enumerate((900, None, 940)):
        add_run(tmp_path, correct, variant="local", seed=seed)
    add_run(tmp_path, 400, variant="full")
    assert made(seeds, tmp_path).cells.set_index("variant")["runs"].to_dict() == {"full": "1", "local": "2 of 3"}
    table = seeds(replace(load_stores([tmp_path]), seeds=frozenset(range(3))), "quick", "matched")
    assert table.cells.set_index("variant")["runs"].to_dict() == {"full": "1 of 3", "local": "2 of 3"}
    assert table.cells.set_index("variant")["above chance"].to_dict() == {"full": "1/1", "local": "2/2"}
