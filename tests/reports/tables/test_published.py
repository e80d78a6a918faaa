"""Published numbers: that they are what their sources print, and how ours are put beside them."""

import pytest

from lra.config.builtin import profile_names
from lra.errors import UsageError
from reports.result_set import load_stores
from reports.tables.published import OTHER_RECIPE, load_published, vs_published
from tests.reports.synthetic import add_run

SOURCES = {source.name: source for source in load_published()}
MISPRINTS = {("original", "sinkhorn"): 51.476}
"""(source, variant) -> what the rows average to, where the source prints something else."""
ONE_DECIMAL = {("xformers", "linformer"), ("xformers", "fnet"), ("state_space", "lru")}


def mean_of(source, variant):
    values = [50.0 if value is None else value for value in source.rows[variant]]
    return sum(values) / len(values)


def test_the_printed_averages_recompute_but_for_the_known_misprints():
    checked = 0
    for name, source in SOURCES.items():
        assert set(source.printed_averages) == set(source.rows)
        assert len(source.columns) == {"A5": 5, "A6": 6}[source.average]
        for variant, printed in source.printed_averages.items():
            mean = mean_of(source, variant)
            if (name, variant) in MISPRINTS:
                assert mean == pytest.approx(MISPRINTS[name, variant], abs=0.0005)
                assert abs(mean - printed) > 0.1
                assert variant in source.notes
            else:
                assert abs(mean - printed) <= (0.0501 if (name, variant) in ONE_DECIMAL else 0.00501), (name, variant)
            checked += 1
    assert checked >= 35


def test_every_source_says_where_it_is_from_and_what_is_wrong_with_it():
    assert len(SOURCES) >= 7
    for source in SOURCES.values():
        assert source.source
        assert source.flags
        assert source.profile in {"", *profile_names(), "skyformer"}
        assert set(source.row_flags) <= set(source.rows)
        assert set(source.notes) <= set(source.rows)
        numbers = [value for row in source.rows.values() for value in row if value is not None]
        assert all(5 < value < 100 for value in numbers)
    assert "listops_tokenizer_bug" in SOURCES["original"].flags
    assert "continuous_input" in SOURCES["s4"].row_flags["s4"]


def test_ours_beside_a_source_of_the_same_sizes(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 370 + seed, profile="official", seed=seed)
    cells = vs_published(load_stores([tmp_path]), "official", "matched").cells
    assert len(cells[cells["difference (points)"] != OTHER_RECIPE]) == 55  # all of the original's table
    row = cells[
        (cells["variant"] == "full") & (cells["source"] == "Tay et al., ICLR 2021") & (cells["task"] == "ListOps")
    ]
    assert row[["published (%)", "ours (%)", "difference (points)"]].to_numpy().tolist() == [
        ["36.37", "37.10 ± 0.10 (3)", "+0.73"]
    ]
    others = cells[cells["difference (points)"] == OTHER_RECIPE]
    assert set(others["variant"]) == {"full"}
    assert len(others) == 3


def test_no_difference_across_recipes_or_on_the_open_track(tmp_path):
    add_run(tmp_path, 370)
    add_run(tmp_path, 370, profile="official", track="open")
    results = load_stores([tmp_path])
    for pair in results.profiles():
        assert set(vs_published(results, *pair).cells["difference (points)"]) == {OTHER_RECIPE}
    assert [note for note in vs_published(results, "quick", "matched").notes if "not comparable" in note]
    assert not [note for note in vs_published(results, "official", "open").notes if "not comparable" in note]


def test_what_was_never_checked_against_its_source_is_left_out():
    """Rows that are known from memory only: Transformer-LS, cosFormer, and those of self-pretrained models."""
    variants = [variant for source in SOURCES.values() for variant in source.rows]
    assert len(variants) >= 41
    assert [name for name in variants if name in {"cosformer", "transformer_ls"} or "pretrained" in name] == []


def test_a_variant_that_nobody_published_says_so(tmp_path):
    add_run(tmp_path, 370, variant="mean_gate")
    with pytest.raises(UsageError, match=r"nothing published .* there is nystromformer, official, skyformer"):
        vs_published(load_stores([tmp_path]), "quick", "matched")
