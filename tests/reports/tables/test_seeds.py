"""The table of seeds, from stores of made-up records."""

from reports.tables import accuracy, seeds
from tests.reports.synthetic import add_run, made


def test_one_seed_is_a_preview_with_wilsons_interval(tmp_path):
    add_run(tmp_path, 400)
    assert "PREVIEW" in made(accuracy, tmp_path).notes[0]
    row = made(seeds, tmp_path).cells.iloc[0]
    assert row["interval (%)"] == "37.01 to 43.07 (Wilson)"
    assert row["trained"] == "1/1"
