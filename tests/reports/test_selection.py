"""Names that a user types for what the records have."""

import re

import pytest
from click.testing import CliRunner

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.errors import UsageError
from reports.cli import command
from reports.result_set import load_stores
from reports.selection import Selection, load, resolve_name, select
from tests.reports.synthetic import add_measurement, add_run


def test_each_row_that_is_named_must_be_there_and_can_be_named_as_it_is_printed(tmp_path, capsys):
    """Else a table would lack a row without a word."""
    config = resolve(task="listops", variant="full", profile=load_profile("spt"), seed=0, overrides={})
    without = config.model_copy(update={"pretrain": None})
    for correct, each in enumerate((config, without, without.model_copy(update={"seed": 1}))):
        add_run(tmp_path, 400 + correct, config=each)
    results = load_stores([tmp_path])
    assert len(select(results, Selection(variants=("full [share=0.0]",))).records) == 2
    assert len(select(results, Selection(variants=("full [share=0.0]", "full"))).records) == 3
    add_measurement(tmp_path, "performer", 64, seconds=1.0, mib=5)
    told = select(load_stores([tmp_path]), Selection(variants=("full", "performer")))
    assert (len(told.records), len(told.measurements)) == (3, 1)
    said = capsys.readouterr().err.splitlines()
    assert said == ["--variant 'full' fits no measurement", "--variant 'performer' fits no run"]
    for missing in ("full [share=0.7]", "full [rotary=True]"):
        with pytest.raises(UsageError, match=re.escape(f"no record fits --variant {missing!r}; `lra-report table")):
            select(results, Selection(variants=("full", missing)))


def test_a_variant_with_settings_selects_each_row_that_has_them_as_the_help_says(tmp_path):
    rows = ({"window": 4}, {"window": 4, "rotary": True}, {"window": 8})
    for seed, options in enumerate(rows):
        add_run(tmp_path, 400, variant="local", options=options, seed=seed)
    chosen = select(load_stores([tmp_path]), Selection(variants=("local [window=4]",)))
    assert {record.config.seed for record in chosen.records.values()} == {0, 1}
    shown = " ".join(CliRunner().invoke(command, ["export", "--help"]).stdout.split())
    assert "or of each of its rows with these settings, 'local [window=4]'" in shown


def test_a_store_without_records_beside_another_is_named(tmp_path, capsys):
    add_run(tmp_path / "mine", 400)
    add_run(tmp_path / "hers" / "lra-results", 500, seed=1)
    found = load(Selection(stores=(tmp_path / "mine", tmp_path / "hers")))
    assert len(found.records) == 1
    said = f"{tmp_path}/hers holds no runs; did you mean --store {tmp_path}/hers/lra-results?\n"
    assert capsys.readouterr().err == said
    add_measurement(tmp_path / "hers", "full", 64, seconds=1.0, mib=5)
    load(Selection(stores=(tmp_path / "mine", tmp_path / "hers")))
    assert capsys.readouterr().err == said.replace("no runs;", "no runs, only measurements;")


@pytest.mark.parametrize("turned", [False, True])
def test_an_exact_title_goes_before_one_that_is_alike_and_two_of_these_are_refused(turned):
    titles = {"local": "Local attention", "my.py:Mine": "LOCAL attention", "full": "Full attention"}
    titles = dict(reversed(titles.items())) if turned else titles
    assert resolve_name("variant", "Local attention", titles) == "local"
    assert resolve_name("variant", "LOCAL attention", titles) == "my.py:Mine"
    assert resolve_name("variant", "full-attention", titles) == "full"
    with pytest.raises(UsageError, match=r"'local-attention' may be any of local, my\.py:Mine; give one of these"):
        resolve_name("variant", "local-attention", titles)
