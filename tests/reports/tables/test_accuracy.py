"""The accuracy table cell by cell, from stores of made-up records."""

import math
from dataclasses import replace

import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import NUMERICS_VERSION
from lra.config.yaml_loader import load_file
from lra.errors import UsageError
from lra.tasks import get_task
from reports.baselines import KNOWN as KNOWN_BASELINES
from reports.render import rankings
from reports.result_set import load_stores
from reports.selection import Selection, select
from reports.tables import accuracy, ranks, seeds, sort_rows
from tests.reports.synthetic import TITLES, add_attempt, add_run, cell_config, five_tasks, made, notes_of


def test_the_accuracy_table_cell_by_cell(tmp_path):
    five_tasks(tmp_path)
    table = made(accuracy, tmp_path)
    assert list(table.cells.columns) == ["ListOps", "Text", "Retrieval", "Image", "Pathfinder", "A5"]
    assert table.cells.loc["full"].tolist() == [
        "40.10 ± 0.10 (3)", "41.10 ± 0.10 (3)", "42.10 ± 0.10 (3)", "43.10 ± 0.10 (3)", "44.10 ± 0.10 (3)", "42.10",
    ]  # fmt: skip
    assert table.cells.loc["contextpool", "A5"] == "47.10"
    assert table.cells.loc["Chance"].tolist() == ["10.00"] * 5 + ["-"]
    assert table.caption == "Test accuracy, profile quick, matched track, 3 seeds"
    assert "Trained for 1500 steps on cpu." in table.notes
    assert len(set(table.records)) == 30
    assert "PREVIEW" not in notes_of(table)


def test_what_is_missing_is_said_and_never_averaged(tmp_path):
    five_tasks(tmp_path)
    add_run(tmp_path, 300, variant="linear", task="listops", seed=1)
    add_run(tmp_path, None, variant="local", task="text", seed=0)
    add_run(tmp_path, 310, variant="local", task="text", seed=1)
    add_attempt(tmp_path, "oom", variant="local", task="image", seed=0)
    add_attempt(tmp_path, "oom", variant="local", task="image", seed=1)
    add_attempt(tmp_path, "preempted", variant="local", task="listops", seed=0)
    for task in ("text", "retrieval", "image", "pathfinder"):
        for seed in range(3):
            add_run(tmp_path, 500, variant="sparse", task=task, seed=seed)
    add_run(tmp_path, None, variant="mega", task="text", seed=0)
    for task in TITLES:
        add_run(tmp_path, 310, variant="mega", task=task, seed=1)
    cells = made(accuracy, tmp_path).cells
    assert cells.loc["mega", "A5"] == "-"  # all the same seed, but one task has lost another one
    assert cells.loc["linear"].tolist() == ["30.00 (1)", "-", "-", "-", "-", "-"]
    assert cells.loc["local", "Text"] == "31.00 (1/2), diverged (1/2)"
    assert cells.loc["local", "Image"] == "OOM (2/2)"
    assert cells.loc["local", "ListOps"] == "preempted (1/1)"
    assert cells.loc[["linear", "local", "sparse"], "A5"].tolist() == ["-", "-", "-"]


def test_a_variant_with_a_diverged_seed_has_no_average_and_no_rank(tmp_path):
    five_tasks(tmp_path, variants=("full", "linear"))
    add_run(tmp_path, None, variant="full", task="text", seed=7)
    table = made(accuracy, tmp_path)
    assert table.cells.loc["full", "A5"] == "-"
    assert math.isnan(table.values.loc["full", "Text"])
    with pytest.raises(UsageError, match="two variants"):
        made(ranks, tmp_path)


def test_two_variants_with_one_seed_each_are_a_preview(tmp_path):
    add_run(tmp_path, 400, seed=0)
    add_run(tmp_path, 410, seed=1, variant="linear")
    table = made(accuracy, tmp_path)
    assert "PREVIEW" in table.notes[0]
    assert table.caption.endswith(", 1 seed")
    add_run(tmp_path, 410, seed=2, variant="linear")
    assert "PREVIEW" not in notes_of(made(accuracy, tmp_path))


def test_runs_at_chance_are_named(tmp_path):
    add_run(tmp_path, 115, seed=0)
    add_run(tmp_path, 400, seed=1)
    for seed in range(3):
        add_run(tmp_path, 105, seed=seed, task="text")
        add_run(tmp_path, 120, seed=seed, task="text", variant="linear")
    notes = [note for note in made(accuracy, tmp_path).notes if "Not above" in note]
    assert notes == [
        "Not above chance by more than the noise of the test set: ListOps: full in 1 of 2 runs; Text: all runs."
    ]
    assert made(seeds, tmp_path).cells.iloc[0]["above chance"] == "1/2"


def test_profiles_tracks_data_and_settings_never_share_a_table_cell(tmp_path):
    add_run(tmp_path, 100)
    add_run(tmp_path, 200, track="open")
    add_run(tmp_path, 300, profile="official")
    add_run(tmp_path, 400, dataset="another", digest="e" * 64)
    add_run(tmp_path, 500, dataset="another", digest="f" * 64)
    add_run(tmp_path, 600, options={"rotary": True})
    results = load_stores([tmp_path])
    assert results.profiles() == [("official", "matched"), ("quick", "matched"), ("quick", "open")]
    cells = accuracy(results, "quick", "matched").cells
    assert sorted(cells.columns) == ["ListOps (another) eeeeeeee", "ListOps (another) ffffffff", "ListOps (made up)"]
    found = sorted(cell for cell in cells.drop(["Chance", "Majority"]).to_numpy().ravel() if cell != "-")
    assert found == ["10.00 (1)", "40.00 (1)", "50.00 (1)", "60.00 (1)"]
    assert accuracy(results, "quick", "open").cells.loc["full", "ListOps"] == "20.00 (1)"


def test_mlp_only_of_the_same_recipe_stands_among_the_baselines(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400 + seed, seed=seed)
    add_run(tmp_path, 300, variant="mlp_only", seed=0)
    add_run(tmp_path, 320, variant="mlp_only", seed=1)
    add_run(tmp_path, None, variant="mlp_only", seed=2)  # diverged
    add_run(tmp_path, 900, variant="mlp_only", seed=3, layers=5)  # another recipe
    add_run(tmp_path, 910, variant="mlp_only", seed=4, digest="f" * 64, dataset="other")
    add_run(tmp_path, 920, variant="mlp_only", task="text")
    results = load_stores([tmp_path])
    chosen = results.filter(lambda config: config.variant.name == "full")
    table = accuracy(chosen, "quick", "matched")
    assert table.cells.index.tolist() == ["full", "Chance", "Majority", "MLP only, trained"]
    assert table.cells.loc["MLP only, trained"].tolist() == ["31.00 ± 1.41 (2/3), diverged (1/3)"]
    assert table.baselines == 3
    of_suite = accuracy(replace(chosen, seeds=frozenset((0, 2, 5))), "quick", "matched")
    assert of_suite.cells.loc["MLP only, trained"].tolist() == ["30.00 (1/3), diverged (1/2)"]
    # where its runs are rows of the table, they are not repeated
    assert "MLP only, trained" not in accuracy(results, *results.profiles()[1]).cells.index


def test_the_order_of_the_tasks_decides_no_digit_of_their_mean(tmp_path):
    """Summed in their order, the one would be 68.64 and the other 68.65."""
    of_tasks = {"full": (10044, 16969, 13451, 16852, 11329), "local": (10044, 16969, 11329, 13451, 16852)}
    for variant, counts in of_tasks.items():
        for task, correct in zip(TITLES, counts, strict=True):
            add_run(tmp_path, correct, task=task, variant=variant, total=20_000)
    table = made(accuracy, tmp_path)
    assert table.cells["A5"][["full", "local"]].tolist() == ["68.64", "68.64"]
    assert len({key.score for key in table.keys}) == 1


def test_numbers_that_print_alike_share_a_mark(tmp_path):
    """In binary, 30.045 is below what numpy's rounding takes it for and what the format prints."""
    for variant, correct in (("full", 6009), ("linear", 6010), ("local", 6008)):
        add_run(tmp_path, correct, variant=variant, total=20_000, baselines={"chance": 10.0})
    table = accuracy(load_stores([tmp_path]), "quick", "matched")
    printed = {row: float(cell.partition(" ")[0]) for row, cell in table.cells["ListOps"].items()}
    assert table.values["ListOps"].dropna().to_dict() == {row: printed[row] for row in ("full", "linear", "local")}


@pytest.mark.parametrize("chosen", ["full", None])
def test_the_trained_baseline_counts_runs_without_a_record(tmp_path, chosen):
    for seed in range(3):
        add_run(tmp_path, 400, seed=seed)
    add_run(tmp_path, 300, variant="mlp_only")
    for seed in (1, 2):
        add_attempt(tmp_path, "oom", variant="mlp_only", seed=seed)
    results = load_stores([tmp_path])
    if chosen:
        results = results.filter(lambda config: config.variant.name == chosen)
    cells = accuracy(results, "quick", "matched").cells["ListOps"]
    assert cells["MLP only, trained" if chosen else "mlp_only"] == "30.00 (1/3), OOM (2/3)"


def test_baselines_that_older_records_lack_are_known_of_the_data(tmp_path):
    [(digest, known)] = load_file(KNOWN_BASELINES)["listops"].items()
    add_run(tmp_path, 440)
    add_run(tmp_path, 440, digest=digest, dataset="another")
    table = accuracy(load_stores([tmp_path]), "quick", "matched")
    for name, value in known.items():
        assert sorted(table.cells.loc[name[0].upper() + name[1:]]) == ["-", f"{value:.2f}"]
    assert table.values.loc["full"].notna().sum() == 1  # 44.0 is not above 42.8 by more than the noise


@pytest.mark.nightly
@pytest.mark.parametrize("order", [(300, 470), (470, 300)])
def test_the_highest_of_unlike_baselines_of_the_same_data_counts(tmp_path, order):
    folders = [tmp_path / str(tenths) for tenths in order]
    for folder, tenths, seed in zip(folders, order, (0, 1), strict=True):
        for variant, correct in (("full", 400), ("local", 450)):
            baselines = {"chance": 10.0, "bag of tokens": tenths / 10}
            add_run(folder, correct, variant=variant, seed=seed, baselines=baselines)
    table = accuracy(load_stores(folders), "quick", "matched")
    assert table.cells.loc["Bag of tokens", "ListOps"] == "47.00"
    assert any(note.startswith("No number is marked under ListOps") for note in table.notes)
    words = "records of the same data have other baselines; the highest counts: Bag of tokens 30.00 to 47.00"
    assert f"ListOps: {words}." in table.notes


def test_the_known_baselines_are_those_that_preparing_measures(tmp_path):
    options = load_profile("quick").tasks["listops"].data
    task = get_task("listops")
    manifest = task.prepare(task.options(**options), tmp_path, workers=1, progress=False).manifest
    known = load_file(KNOWN_BASELINES)["listops"][manifest.digest]
    assert known == {name: manifest.baselines[name] for name in known}


def test_mlp_only_of_another_numerics_version_is_no_baseline(tmp_path):
    add_run(tmp_path, 400)
    for version, right in ((NUMERICS_VERSION, 300), (NUMERICS_VERSION + 1, 500)):
        add_run(tmp_path, right, variant="mlp_only", numerics_version=version)
    chosen = load_stores([tmp_path]).filter(lambda config: config.variant.name == "full")
    assert accuracy(chosen, "quick", "matched").cells.loc["MLP only, trained"].tolist() == ["30.00 (1)"]


def test_where_recipes_differ_no_trained_baseline_stands_beside_all(tmp_path):
    for layers, right in ((2, 300), (3, 500)):
        add_run(tmp_path, 400, layers=layers, track="open")
        add_run(tmp_path, right, variant="mlp_only", layers=layers, track="open", seed=layers)
    chosen = load_stores([tmp_path]).filter(lambda config: config.variant.name == "full")
    assert "MLP only, trained" not in accuracy(chosen, "quick", "open").cells.index
    one = chosen.filter(lambda config: config.model.num_layers == 3)
    assert accuracy(one, "quick", "open").cells.loc["MLP only, trained"].tolist() == ["50.00 (1)"]


def test_a_title_that_is_the_name_of_another_row_shares_no_cell_with_it(tmp_path):
    """Titles of plug-ins are free text."""
    add_run(tmp_path, 400, variant="local", variant_title="Local", options={"window": 8})
    add_run(tmp_path, 500, variant="local", variant_title="Local", options={"window": 16})
    named = next(name for name in made(accuracy, tmp_path).cells.index if "window=8" in name)
    add_run(tmp_path, 600, variant="theirs", variant_title=named, seed=1)
    cells = made(accuracy, tmp_path).cells
    assert cells.loc[f"{named} (local)", "ListOps"] == "40.00 (1)"
    assert cells.loc[f"{named} (theirs)", "ListOps"] == "60.00 (1)"


def test_two_baselines_of_one_title_share_no_row(tmp_path):
    """The records are of two versions of the program of a task."""
    runs = (
        ("mine 1", "linear", 0, {"bag": 60.0}),
        ("mine 2", "full", 0, {"Bag": 30.0}),
        ("mine 2", "full", 1, {"Bag": 29.0}),
    )
    for origin, variant, seed, baselines in runs:
        config = cell_config(track="open", variant=variant, seed=seed)
        config = config.model_copy(update={"task": "mine.py:Task", "task_origin": origin})
        add_run(tmp_path, 500, config=config, title="Mine", baselines={"chance": 10.0, **baselines})
    table = made(accuracy, tmp_path, track="open")
    assert table.cells["Mine"].to_dict().items() >= {"Chance": "10.00", "bag": "60.00", "Bag": "30.00"}.items()
    note = "Mine: records of the same data have other baselines; the highest counts: Bag 29.00 to 30.00."
    assert note in table.notes


def test_a_baseline_with_the_name_of_the_trained_one_keeps_its_row(tmp_path):
    add_run(tmp_path, 500, baselines={"MLP only, trained": 44.0})
    add_run(tmp_path, 300, variant="mlp_only")
    results = load_stores([tmp_path])
    cells = accuracy(results.filter(lambda config: config.variant.name == "full"), "quick", "matched").cells
    assert cells["ListOps"].to_dict() == {
        "full": "50.00 (1)", "MLP only, trained": "44.00", "MLP only, trained (mlp_only)": "30.00 (1)",
    }  # fmt: skip


def test_two_tasks_of_one_title_share_no_column(tmp_path):
    for task, correct in (("listops", 400), ("mine.py:Task", 600)):
        add_run(tmp_path, correct, config=cell_config().model_copy(update={"task": task}), title="ListOps")
    cells = made(accuracy, tmp_path).cells
    assert cells.loc["full"].to_dict() == {"ListOps (listops)": "40.00 (1)", "ListOps (mine.py:Task)": "60.00 (1)"}


def test_a_task_with_the_title_of_an_average_keeps_its_column(tmp_path):
    five_tasks(tmp_path, seeds=1)
    config = cell_config().model_copy(update={"task": "mine.py:Task"})
    add_run(tmp_path, 700, config=config, title="A5")
    assert made(accuracy, tmp_path).cells.loc["full", ["A5", "A5 (mine.py:Task)"]].tolist() == ["42.00", "70.00 (1)"]


def test_runs_of_a_task_whose_program_changed_share_no_cell(tmp_path):
    for origin, correct in (("mine 1", 400), ("mine 2", 600)):
        config = cell_config(track="open").model_copy(update={"task": "mine.py:Task", "task_origin": origin})
        add_run(tmp_path, correct, config=config, title="Mine")
    cells = made(accuracy, tmp_path, track="open").cells
    assert cells["Mine"].to_dict() | {"Chance": "", "Majority": ""} == {
        'full [origin="mine 1"]': "40.00 (1)", 'full [origin="mine 2"]': "60.00 (1)", "Chance": "", "Majority": "",
    }  # fmt: skip


def test_nothing_is_marked_where_all_stand_at_chance(tmp_path):
    for place, variant in enumerate(("full", "linear")):
        for seed in range(3):
            add_run(tmp_path, 110 + 8 * place + seed, variant=variant, seed=seed)
            add_run(tmp_path, 160 + 8 * place + seed, variant=variant, seed=seed, task="text")
            baselines = {"chance": 10.0, "root": 16.5}  # a baseline that looks at the input counts too
            add_run(tmp_path, 160 + 8 * place, variant=variant, seed=seed, task="image", baselines=baselines)
    table = made(accuracy, tmp_path)
    assert {table.cells.columns[column] for _, column in rankings(table)} == {"Text"}
    assert [note for note in table.notes if note.startswith("No number is marked under ListOps, Image: ")]
    add_run(tmp_path, 400, variant="performer")
    table = made(accuracy, tmp_path)
    assert {table.cells.columns[column] for _, column in rankings(table)} == {"ListOps", "Text"}


def test_a_row_that_lost_runs_does_not_mark_one_that_no_baseline_is_below(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 115 + seed, seed=seed)
        add_run(tmp_path, 112, variant="linear", seed=seed)
        add_run(tmp_path, 900 if seed else None, variant="performer", seed=seed)
    table = made(accuracy, tmp_path)
    assert rankings(table) == {}
    assert "No number is marked under ListOps" in notes_of(table)
    add_run(tmp_path / "lost", 900, variant="performer")
    add_run(tmp_path / "lost", None, variant="performer", seed=1)
    assert "No number is marked" not in notes_of(made(accuracy, tmp_path / "lost"))  # there is none that could be


def test_a_task_on_two_data_gives_no_average_and_a_note_says_so(tmp_path):
    five_tasks(tmp_path, seeds=1)
    add_attempt(tmp_path, "oom", variant="linear", task="text", digest="e" * 64)
    table = made(accuracy, tmp_path)
    assert "A5" not in table.cells.columns
    assert "No A5: a task has several columns, on other data: Text dddddddd, Text eeeeeeee." in table.notes


def test_an_average_needs_the_same_seeds_of_every_task(tmp_path):
    five_tasks(tmp_path, variants=("full",))
    for task in ("listops", "text", "retrieval", "image", "pathfinder"):
        for seed in range(1 if task == "text" else 3):
            add_run(tmp_path, 500, task=task, variant="local", seed=seed)
    table = made(accuracy, tmp_path)
    assert table.cells["A5"].tolist()[:2] == ["42.10", "-"]


def test_the_trained_baseline_says_how_many_of_its_runs_are_lost(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 500, variant="full", seed=seed)
        add_run(tmp_path, None if seed else 300, variant="mlp_only", seed=seed)
    shown = accuracy(load_stores([tmp_path]).filter(lambda config: config.variant.name == "full"), "quick", "matched")
    assert shown.cells.loc["MLP only, trained", "ListOps"] == "30.00 (1/3), diverged (2/3)"


def test_a_row_that_lacks_a_seed_of_the_suite_is_neither_marked_nor_averaged(tmp_path):
    five_tasks(tmp_path, seeds=2)
    for task in ("listops", "text", "retrieval", "image", "pathfinder"):
        add_run(tmp_path, 900, variant="linear", task=task)
    whole = load_stores([tmp_path])
    for results, best in ((whole, "linear"), (replace(whole, seeds=frozenset(range(2))), "contextpool")):
        table = accuracy(results, "quick", "matched")
        assert {table.cells.index[row] for (row, _), rank in rankings(table).items() if rank == 1} == {best}
        assert (table.cells.loc["linear", "A5"] == "-") == (best != "linear")
    assert table.cells.loc["linear", "ListOps"] == "90.00 (1/2)"
    assert sort_rows(table, "score").cells.index[2] == "linear"


def test_a_variant_without_any_number_has_a_row(tmp_path):
    five_tasks(tmp_path)
    add_run(tmp_path, None, variant="linear", task="text")
    assert made(accuracy, tmp_path).cells.loc["linear"].tolist() == ["-", "diverged (1/1)", "-", "-", "-", "-"]


def test_titles_that_print_alike_share_no_row_and_no_column(tmp_path):
    """Two programs, two tasks and two data whose titles differ by what cannot be seen."""
    for variant, title, correct in (("one", "Mixer", 400), ("two", "Mixer\u200b", 600)):
        add_run(tmp_path, correct, variant=variant, variant_title=title)
    cells = made(accuracy, tmp_path).cells
    assert cells["ListOps"][["Mixer (one)", "Mixer (two)"]].tolist() == ["40.00 (1)", "60.00 (1)"]
    add_run(tmp_path, 700, variant="one", variant_title="Mixer", digest="e" * 64, dataset="made  up")
    headings = list(made(accuracy, tmp_path).cells.columns)
    assert headings == ["ListOps dddddddd", "ListOps eeeeeeee"]


def test_a_variant_with_the_title_of_a_baseline_of_its_task_is_told_from_it(tmp_path):
    add_run(
        tmp_path, 400, variant="local", variant_title="Bag of tokens", baselines={"chance": 10.0, "bag of tokens": 33.0}
    )
    cells = made(accuracy, tmp_path).cells
    assert cells["ListOps"].to_dict() == {
        "Bag of tokens": "40.00 (1)", "Chance": "10.00", "Bag of tokens (baseline)": "33.00",
    }  # fmt: skip


def test_a_file_is_one_variant_and_one_task_wherever_its_folder_is_written(tmp_path):
    for seed, folder in enumerate(("plug/", "./plug/", "/elsewhere/")):
        config = cell_config(variant=f"{folder}v.py:Mix", track="open", seed=seed)
        config = config.model_copy(update={"task": f"{folder}t.py:Mine"})
        add_run(tmp_path, 400 + 10 * seed, config=config, variant_title="Mix", title="Mine")
    results = load_stores([tmp_path])
    assert accuracy(results, "quick", "open").cells.loc["Mix", "Mine"] == "41.00 ± 1.00 (3)"
    chosen = select(results, Selection(variants=("plug/v.py:Mix",), tasks=("anywhere/t.py:Mine",)))
    assert len(chosen.records) == 3


def test_an_option_that_is_the_default_on_other_tasks_is_said_to_be_in_another_row(tmp_path):
    for task in ("listops", "image"):
        config = resolve(
            task=task, variant="local", profile=load_profile("official"), seed=0, overrides={"variant.window": 64}
        )
        add_run(tmp_path, 400, config=config)
    table = accuracy(load_stores([tmp_path]), "official", "matched")
    assert list(table.cells.index[:2]) == ["local", "local [window=64]"]
    assert "window=64 of local is what profile official has itself on image, pathfinder" in notes_of(table)
