"""The table and the figure of cost by length, from made-up measurements of `lra-bench`."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from lra.errors import UsageError
from reports.cli import command
from reports.figures import all_figures
from reports.figures.lines import log_slope
from reports.render import rankings, render
from reports.result_set import load_stores
from reports.tables.efficiency import efficiency_tables, measurement_groups
from tests.reports.synthetic import add_measurement, add_run


def fill(folder, lengths=(1024, 2048, 3072, 4096), **of):
    for length in lengths:
        thousand = length // 1024
        add_measurement(folder, "full", length, seconds=0.5 * thousand**2, mib=100 * thousand**2, **of)
        add_measurement(folder, "linear", length, seconds=0.25 * thousand, mib=50 * thousand, **of)


def test_the_layout_of_the_original_cell_by_cell(tmp_path):
    fill(tmp_path, lengths=(1024, 4096))
    add_measurement(tmp_path, "local", 1024, seconds=0.2, mib=40, noisy=True)
    add_measurement(tmp_path, "local", 4096, seconds=1.0, mib=1, status="oom")
    (table,) = efficiency_tables(load_stores([tmp_path]))
    assert list(table.cells.columns) == ["steps/s 1K", "steps/s 4K", "GB 1K", "GB 4K", "state 4K"]
    assert table.cells.loc["full"].tolist() == ["2 (1)", "0.125 (0.062)", "0.115 (1.00)", "1.688 (1.00)", "524,288"]
    # The made-up record of `linear` has options of `full`, which it refuses: its state is unknown.
    assert table.cells.loc["linear"].tolist() == ["4 (2)", "1 (0.5)", "0.063 (0.55)", "0.220 (0.13)", "?"]
    assert table.cells.loc["local"].tolist() == ["5~ (2.5)", "OOM", "0.052 (0.45)", "OOM", "6,400"]
    add_measurement(tmp_path, "conv", 1024, seconds=0.2, mib=40)
    (shorter,) = efficiency_tables(load_stores([tmp_path]))
    assert shorter.cells.loc["conv"].tolist()[1:] == ["-", "0.052 (0.45)", "-", "not measured"]
    assert list(table.cells.index) == ["full", "linear", "local"]
    assert table.caption == "Speed and memory of training by length: text, profile quick, Model <7>"
    assert "text, profile quick, batch 4, Model <7>, 2 threads, torch 2" in table.notes[0]
    assert "load of the machine" in " ".join(table.notes).lower()
    assert len(table.records) == 6
    assert r"**5\~ (2.5)**" in render(table, "markdown")
    assert r"\textbf{0.052 (0.45)}" in render(table, "latex")


def test_machines_and_batches_that_collide_get_tables_of_their_own(tmp_path):
    fill(tmp_path, lengths=(1024, 2048))
    assert len(measurement_groups(load_stores([tmp_path]))) == 1
    add_measurement(tmp_path, "full", 4096, seconds=1.0, mib=9, batch=1)  # equal tokens in a step
    (group,) = measurement_groups(load_stores([tmp_path]))
    assert sorted(group["length"].unique()) == [1024, 2048, 4096]
    add_measurement(tmp_path, "full", 1024, seconds=1.0, mib=9, batch=8)
    assert sorted(group["batch"].iloc[0] for group in measurement_groups(load_stores([tmp_path]))) == [1, 4, 8]
    add_measurement(tmp_path, "full", 1024, seconds=1.0, mib=9, threads=1)
    assert len(measurement_groups(load_stores([tmp_path]))) == 4
    add_measurement(tmp_path, "full", 1024, seconds=1.0, mib=9, limit=2**30)
    assert len(measurement_groups(load_stores([tmp_path]))) == 5


def test_two_programs_of_a_task_get_tables_of_their_own(tmp_path):
    fill(tmp_path, lengths=(1024,))
    for seconds, origin in ((0.5, "p sha256:aa"), (0.25, "p sha256:bb")):
        add_measurement(tmp_path, "full", 1024, seconds=seconds, mib=9, task="my.py:Mine", task_origin=origin)
    groups = measurement_groups(load_stores([tmp_path]))
    assert sorted(len(group) for group in groups) == [1, 1, 2]


def test_the_folder_of_the_file_of_a_task_is_no_part_of_what_was_measured(tmp_path):
    """Two programs are named, wherever they lie; one program has one table."""
    for folder, origin in (("", "aa"), ("old/", "bb"), ("proj/", "aa")):
        add_measurement(
            tmp_path, "full", 1024, seconds=0.5, mib=9, task=f"{folder}my.py:Mine", task_origin=f"my.py:Mine {origin}"
        )
    add_measurement(tmp_path, "linear", 1024, seconds=0.5, mib=9, task="my.py:Mine", task_origin="my.py:Mine aa")
    places = [group["place"].iloc[0] for group in measurement_groups(load_stores([tmp_path]))]
    named = [f'my.py:Mine, profile quick [origin="my.py:Mine {origin}"]' for origin in ("aa", "bb")]
    assert [place.partition("], ")[0] + "]" for place in sorted(places)] == named


def test_of_two_stores_the_newest_measurement_counts_and_each_torch_has_a_table(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    add_measurement(one, "full", 1024, seconds=0.5, mib=9, measured_at="2026-02-01T00:00:00+00:00")
    add_measurement(other, "full", 1024, seconds=0.25, mib=9)
    for stores in ([one, other], [other, one]):
        (group,) = measurement_groups(load_stores(stores))
        assert group["seconds"].tolist() == [0.5]
    add_measurement(other, "full", 1024, seconds=0.25, mib=9, torch="3")
    for stores in ([one, other], [other, one]):
        groups = measurement_groups(load_stores(stores))
        assert sorted(group["seconds"].item() for group in groups) == [0.25, 0.5]


def test_within_a_length_all_is_of_one_batch(tmp_path):
    """Memory of a batch of 8 is no multiple of that of another batch, whatever the variants."""
    add_measurement(tmp_path, "full", 1024, seconds=1.0, mib=90, batch=32)
    add_measurement(tmp_path, "local", 1024, seconds=0.2, mib=9, batch=8)
    tables = efficiency_tables(load_stores([tmp_path]))
    assert sorted(cell for table in tables for cell in table.cells["GB 1K"]) == ["0.020", "0.105 (1.00)"]


def test_options_that_differ_are_in_the_label(tmp_path):
    for rotary in (False, True):
        add_measurement(tmp_path, "full", 1024, seconds=1.0, mib=9, options={"rotary": rotary})
    (group,) = measurement_groups(load_stores([tmp_path]))
    assert sorted(group["label"]) == ["full", "full [rotary=True]"]


def test_the_figure_tells_the_slopes(tmp_path):
    fill(tmp_path)
    for number in range(7):
        add_measurement(tmp_path, f"variant_{number}", 1024, seconds=1.0, mib=9)
        add_measurement(tmp_path, f"variant_{number}", 2048, seconds=1.0, mib=9)
    drawn = list(all_figures(load_stores([tmp_path])))
    assert [title.partition(":")[0] for title, _ in drawn] == ["scaling 1", "scaling 2"]
    for names in ([text.get_text() for text in axes.texts] for axes in drawn[0][1].axes):  # of time, and of memory
        assert names[:2] == ["full (2.00)", "linear (1.00)"]
    for names in ([text.get_text() for text in axes.texts] for axes in drawn[1][1].axes):
        assert names == ["full (2.00)", "variant_5 (0.00)", "variant_6 (0.00)"]


def test_the_slope_is_the_exponent():
    lengths = np.array([1.0, 2.0, 4.0, 8.0])
    assert log_slope(lengths, 3 * lengths**1.5) == pytest.approx(1.5)
    assert np.isnan(log_slope(lengths[:1], lengths[:1]))


def test_a_store_with_one_kind_refuses_the_other_and_counts_damage(tmp_path):
    def report(*arguments):
        return CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)

    fill(tmp_path / "bench")
    path = add_measurement(tmp_path / "bench", "local", 1024, seconds=1.0, mib=9)
    path.write_text(path.read_text().replace("no memory", "").replace('"threads": 2', '"threads": 3'))
    done = report("table", "efficiency", "--store", tmp_path / "bench", "--variant", "linear")
    assert done.exit_code == 0
    assert done.stderr.startswith("1 files passed over:")
    assert "linear" in done.stdout
    assert "\nfull" not in done.stdout
    assert "no records of runs" in report("table", "accuracy", "--store", tmp_path / "bench").stderr
    add_run(tmp_path / "runs", 400)
    assert "lra-bench --preset lra makes them" in report("table", "efficiency", "--store", tmp_path / "runs").stderr
    with pytest.raises(UsageError, match="no measurements"):
        efficiency_tables(load_stores([tmp_path / "runs"]))


def test_the_marks_are_those_of_the_printed_numbers(tmp_path):
    for variant, seconds, mib in (("full", 81.0, 1), ("linear", 67.0, 4), ("local", 66.99, 1)):
        add_measurement(tmp_path, variant, 1024, seconds=seconds, mib=mib)
    (table,) = efficiency_tables(load_stores([tmp_path]))
    shown = {label: [cell.partition(" ")[0] for cell in cells[:2]] for label, *cells in table.cells.itertuples()}
    assert shown == {"full": ["0.0123", "0.012"], "linear": ["0.0149", "0.015"], "local": ["0.0149", "0.012"]}
    marks = rankings(table)
    assert [marks.get((row, column)) for column in (0, 1) for row in range(3)] == [2, 1, 1, 1, 2, 1]


def test_memory_of_what_did_not_fit_when_it_was_timed_is_not_marked(tmp_path):
    for variant, mib in (("full", 90), ("linear", 50), ("local", 9)):
        add_measurement(tmp_path, variant, 1024, seconds=1.0, mib=mib)
    results = load_stores([tmp_path])
    *others, least = sorted(results.measurements, key=lambda each: -each.memory.total)
    least = least.model_copy(update={"status": "oom", "timing": None})
    (table,) = efficiency_tables(replace(results, measurements=(*others, least)))
    assert table.cells.loc["local", "GB 1K"] == "OOM"
    assert {table.cells.index[row] for row, _ in rankings(table)} == {"full", "linear"}


def test_noisy_times_are_hollow_and_others_are_not(tmp_path):
    for length, noisy in ((1024, False), (2048, True), (4096, False)):
        add_measurement(tmp_path, "full", length, seconds=length / 1024, mib=9, noisy=noisy)
    ((_, figure),) = all_figures(load_stores([tmp_path]), titled=True)
    hollow = [
        [
            line.get_xdata().tolist()
            for line in axes.lines
            if line.get_markerfacecolor() == "white" and len(line.get_xdata())
        ]
        for axes in figure.axes
    ]
    assert hollow == [[[2048.0]], []]  # of the times, and none of memory
    assert figure.get_suptitle().startswith("In brackets: slope; hollow: noisy\n")


PLAIN = "text, profile quick"
OTHERS = {
    f"{PLAIN} [causal=True, norm=rms]": {"model.causal": True, "model.norm": "rms"},
    f"{PLAIN} [attention_dropout=0.5, dropout=0.5]": {"model.dropout": 0.5, "model.attention_dropout": 0.5},
    f"{PLAIN} [compile=True]": {"train.compile": True},
}


def test_settings_that_are_not_those_of_the_profile_are_named(tmp_path):
    """Also where nothing else was measured, beside which they could be seen to differ."""
    for number, (what, settings) in enumerate({PLAIN: {}, **OTHERS}.items()):
        store = tmp_path / str(number)
        for length in (1024, 2048):
            add_measurement(store, "full", length, seconds=1.0, mib=9, settings=settings)
        results = load_stores([store])
        (table,) = efficiency_tables(results)
        assert table.caption == f"Speed and memory of training by length: {what}, Model <7>"
        assert table.notes[0].startswith(f"Measured: {what}, batch 4, Model <7>, 2 threads, torch 2, 2 layers")
        ((title, _),) = all_figures(results)
        assert title == f"scaling: {what}, batch 4, Model <7>, 2 threads, torch 2"


def test_compiled_steps_are_named_under_a_profile_of_which_nothing_is_known(tmp_path):
    add_measurement(tmp_path, "full", 1024, seconds=1.0, mib=9, profile="mine", settings={"train.compile": True})
    (table,) = efficiency_tables(load_stores([tmp_path]))
    assert table.caption.endswith(": text, profile mine [compile=True], Model <7>")


def test_no_two_tables_of_a_report_have_one_caption(tmp_path):
    under = [{"settings": settings} for settings in ({}, *OTHERS.values())]
    under += [{"threads": 1}, {"torch": "3"}, {"limit": 2**30}, {"batch": 8}]
    under += [{"environment": {name: "other"}} for name in ("library_settings", "deterministic_algorithms")]
    under += [{"profile": "mine"}, {"profile": "mine", "settings": {"model.norm": "rms"}}]
    stores = [tmp_path / str(number) for number in range(len(under))]
    for store, of in zip(stores, under, strict=True):
        for length in (1024, 2048):
            add_measurement(store, "full", length, seconds=1.0, mib=9, **of)
    results = load_stores(stores)
    made, drawn = efficiency_tables(results), [title for title, _ in all_figures(results)]
    assert len({table.caption for table in made}) == len(set(drawn)) == len(made) == len(under)
    # Of a profile that is not built in, all that is known is in what its measurements differ.
    captions = [table.caption.partition(": ")[2] for table in made]
    assert {f"text, profile mine [norm={norm}], Model <7>" for norm in ("layer", "rms")} < set(captions)


def test_speeds_with_other_instructions_never_share_a_table(tmp_path):
    for variant, instructions in (("full", "AVX512"), ("local", "DEFAULT")):
        where = {"cpu_capability": instructions}
        add_measurement(tmp_path, variant, 1024, seconds=1.0, mib=9, environment=where)
        alone = load_stores([tmp_path]).filter(lambda config, of=variant: config.variant.name == of)
        assert "cpu capability" not in measurement_groups(alone)[0]["place"].iloc[0]
    tables = efficiency_tables(load_stores([tmp_path]))
    found = {table.caption.partition("torch 2, ")[2]: list(table.cells.index) for table in tables}
    assert found == {"cpu capability AVX512": ["full"], "cpu capability DEFAULT": ["local"]}
