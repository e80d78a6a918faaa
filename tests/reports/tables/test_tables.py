"""Tables cell by cell, from stores of made-up records."""

import math

import numpy as np
import pytest
from scipy import stats

from lra.errors import UsageError
from reports.result_set import load_stores
from reports.tables import ablation, accuracy, cost, depth, head_to_head, ranks, seeds
from tests.reports.synthetic import BASE, add_attempt, add_run, five_tasks


def made(generated_by, folder, *names, profile="quick", track="matched"):
    return generated_by(load_stores([folder]), profile, track, *names)


def text_of(table):
    return " ".join(table.notes)


def test_the_accuracy_table_cell_by_cell(tmp_path):
    five_tasks(tmp_path)
    table = made(accuracy, tmp_path)
    assert list(table.cells.columns) == ["ListOps", "Text", "Retrieval", "Image", "Pathfinder", "A5"]
    assert table.cells.loc["full"].tolist() == [
        "40.10 ± 0.10 (3)", "41.10 ± 0.10 (3)", "42.10 ± 0.10 (3)", "43.10 ± 0.10 (3)", "44.10 ± 0.10 (3)", "42.10",
    ]  # fmt: skip
    assert table.cells.loc["contextpool", "A5"] == "47.10"
    assert table.cells.loc["Chance"].tolist() == ["10.00"] * 5 + ["-"]
    assert table.caption == "Test accuracy, profile quick, matched track; cpu, 1500 steps, 3 seeds"
    assert len(set(table.records)) == 30
    assert "PREVIEW" not in text_of(table)


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
    cells = made(accuracy, tmp_path).cells
    assert cells.loc["linear"].tolist() == ["30.00 (1/3)", "-", "-", "-", "-", "-"]
    assert cells.loc["local", "Text"] == "31.00 (1/3), diverged (1/2)"
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


def test_one_seed_is_a_preview_with_wilsons_interval(tmp_path):
    add_run(tmp_path, 400)
    assert "PREVIEW" in made(accuracy, tmp_path).notes[0]
    row = made(seeds, tmp_path).cells.iloc[0]
    assert row["interval"] == "37.01 to 43.07 (Wilson)"
    assert row["trained"] == "1/1"


def test_captions_count_the_seeds_behind_the_numbers(tmp_path):
    five_tasks(tmp_path, seeds=3, tasks=["listops"])
    assert made(accuracy, tmp_path).caption.endswith(", 3 seeds")
    for seed in (3, 4):
        add_run(tmp_path, 400, seed=seed)
    add_run(tmp_path, None, seed=5)
    assert made(accuracy, tmp_path).caption.endswith(", 3 to 5 seeds")
    assert made(head_to_head, tmp_path, "full", "contextpool").caption.endswith(", 3 seeds")


def test_two_variants_with_one_seed_each_are_a_preview(tmp_path):
    add_run(tmp_path, 400, seed=0)
    add_run(tmp_path, 410, seed=1, variant="linear")
    table = made(accuracy, tmp_path)
    assert "PREVIEW" in table.notes[0]
    assert table.caption.endswith(", 1 seed")
    add_run(tmp_path, 410, seed=2, variant="linear")
    assert "PREVIEW" not in text_of(made(accuracy, tmp_path))


def test_runs_at_chance_are_named(tmp_path):
    add_run(tmp_path, 115, seed=0)
    add_run(tmp_path, 400, seed=1)
    for seed in range(3):
        add_run(tmp_path, 105, seed=seed, task="text")
        add_run(tmp_path, 120, seed=seed, task="text", variant="linear")
    notes = [note for note in made(accuracy, tmp_path).notes if "Not above" in note]
    assert notes == [
        "Not above chance by more than the noise of the test set: full on ListOps in 1 of 2 runs, Text in 3 of 3 runs.",
        "Not above chance by more than the noise of the test set: linear on Text in 3 of 3 runs.",
    ]
    assert made(seeds, tmp_path).cells.iloc[0]["trained"] == "1/2"


def test_profiles_tracks_editions_data_and_settings_never_share_a_cell(tmp_path):
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


def test_cost_is_relative_to_full_of_the_same_recipe(tmp_path):
    for layers in (2, 4):
        add_run(tmp_path, 400, layers=layers, track="open", speed=1000.0 * layers, memory=100, flops=5_000_000 * layers)
        add_run(tmp_path, 400, layers=layers, track="open", variant="linear", speed=3000.0 * layers, memory=25,
                flops=2_000_000 * layers)  # fmt: skip
    add_run(tmp_path, 400, track="open", variant="conv", flops=None)
    table = made(cost, tmp_path, track="open")
    cells = table.cells.set_index("variant")
    for layers in (2, 4):
        row = cells.loc[f"linear [num_layers={layers}]"]
        assert (row["tokens/s x full"], row["peak MiB x full"], row["peak MiB"]) == ("3.00", "0.25", "25")
        assert (row["MFLOPs"], row["MFLOPs x full"]) == (f"{2 * layers}.0", "0.40")
    assert cells.loc["conv", ["MFLOPs", "MFLOPs x full"]].tolist() == ["-", "-"]
    assert "matrix products, convolutions and fused attention only" in text_of(table)


def test_depth_has_accuracy_operations_and_time(tmp_path):
    for layers, right in ((1, 300), (2, 400), (4, 350)):
        for seed in range(2):
            add_run(tmp_path, right + 10 * seed, seed=seed, layers=layers, track="open", flops=1_500_000 * layers,
                    speed=BASE.train.batch_size * 10 / layers)  # fmt: skip
    add_run(tmp_path, 200, layers=1, track="open", variant="linear", flops=None)
    add_run(tmp_path, None, layers=2, track="open", variant="linear")
    add_attempt(tmp_path, "oom", layers=4, track="open", variant="linear")
    cells = made(depth, tmp_path, track="open").cells
    assert cells[["variant", "layers", "test accuracy %", "MFLOPs"]].to_numpy().tolist() == [
        ["full", "1", "30.50 ± 0.71 (2)", "1.5"],
        ["full", "2", "40.50 ± 0.71 (2)", "3.0"],
        ["full", "4", "35.50 ± 0.71 (2)", "6.0"],
        ["linear", "1", "20.00 (1/2)", "-"],
        ["linear", "2", "diverged (1/1)", "2.0"],
        ["linear", "4", "OOM (1/1)", "-"],
    ]
    assert cells["seconds per step"].tolist()[:3] == ["1.000", "2.000", "4.000"]
    assert cells["seconds per step"].tolist()[5] == "-"


def test_head_to_head_pairs_seeds_and_examples(tmp_path):
    for seed, (a, b) in enumerate([(500, 480), (510, 500), (530, 500)]):
        add_run(tmp_path, a, seed=seed)
        add_run(tmp_path, b, seed=seed, variant="linear")
    add_run(tmp_path, 100, seed=9)  # has no partner
    row = made(head_to_head, tmp_path, "full", "linear").cells.iloc[0]
    assert (row["seeds"], row["difference"]) == ("3", "+2.00")
    assert row["95 % interval"] == "[-0.48, +4.48]"  # 2 -+ 4.3027 * 1 / sqrt(3)
    assert (row["only full"], row["only linear"]) == ("20, 10, 30", "0, 0, 0")
    assert row["McNemar p per seed"] == "<0.001, 0.002, <0.001"
    assert row["p (Holm)"] == row["p (paired t)"] == "0.074"
    assert row["detectable"] == "3.26"
    for seed in range(3):
        add_run(tmp_path, 520, seed=seed, task="text")
        add_run(tmp_path, 500, seed=seed, task="text", variant="linear")
    row = made(head_to_head, tmp_path, "full", "linear").cells.iloc[1]
    assert row[["difference", "p (paired t)", "p (Holm)", "detectable"]].tolist() == ["+2.00", "-", "-", "-"]
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        made(head_to_head, tmp_path, "full", "linaer")


def test_p_values_of_several_tasks_are_adjusted(tmp_path):
    """The seeds of one variant are not in the order of the other's, so that only pairs of equal seeds give these."""
    scores = {"listops": ([500, 530, 510], [490, 500, 505]), "text": ([600, 610, 620], [595, 612, 605])}
    for task, (first, second) in scores.items():
        for seed in range(3):
            add_run(tmp_path, first[seed], task=task, seed=seed)
            add_run(tmp_path, second[seed], task=task, seed=seed, variant="linear")
    rows = made(head_to_head, tmp_path, "full", "linear").cells.set_index("task")
    expected = [stats.ttest_rel(first, second).pvalue for first, second in scores.values()]
    assert expected[0] < expected[1] < 0.5
    assert rows["p (paired t)"].tolist() == [f"{p:.3f}" for p in expected]
    assert rows["p (Holm)"].tolist() == [f"{2 * expected[0]:.3f}", f"{max(2 * expected[0], expected[1]):.3f}"]


def test_ablation_differs_from_the_most_common_setting(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400 + seed, seed=seed)
        add_run(tmp_path, 450 + 2 * seed, seed=seed, options={"rotary": True})
    add_run(tmp_path, 403, seed=3)
    cells = made(ablation, tmp_path, "full").cells
    assert cells["changed"].tolist() == ["(base)", "rotary=True"]
    assert cells["test accuracy %"].tolist() == ["40.15 ± 0.13 (4)", "45.20 ± 0.20 (3/4)"]
    assert cells["difference to base"].tolist() == ["-", "+5.10 [+4.85, +5.35] (3)"]


def test_of_equally_common_settings_the_one_run_first_is_the_base(tmp_path):
    add_run(tmp_path, 400, options={"rotary": False}, finished_at="2026-01-02T00:00:00+00:00")
    add_run(tmp_path, 410, options={"rotary": True}, finished_at="2026-01-01T00:00:00+00:00")
    cells = made(ablation, tmp_path, "full").cells
    assert cells["changed"].tolist() == ["(base)", "rotary=False"]
    assert cells["difference to base"].tolist() == ["-", "-1.00 (1)"]


def test_ranks(tmp_path):
    five_tasks(tmp_path, variants=("full", "contextpool", "linear"))
    add_run(tmp_path, 900, variant="local", task="text")
    table = made(ranks, tmp_path)
    assert table.cells.to_numpy().tolist() == [["linear", "1.00"], ["contextpool", "2.00"], ["full", "3.00"]]
    assert "Critical difference (Nemenyi, 0.05): 1.48" in text_of(table)  # 2.343 sqrt(3 * 4 / 30)
    assert "Left out because a task is missing: local." in table.notes


def test_two_stores_are_read_as_one_and_disagreements_are_told(tmp_path):
    for part, right in (("a", 400), ("b", 401)):
        add_run(tmp_path / part, right)
    add_run(tmp_path / "b", 500, seed=1, bits=np.arange(1000) >= 500)
    results = load_stores([tmp_path / "a", tmp_path / "b"])
    assert len(results.records) == 2
    assert [problem for problem in results.problems if "another outcome" in problem] == results.problems
    assert len(results.problems) == 1
