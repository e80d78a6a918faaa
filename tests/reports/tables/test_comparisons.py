"""Head to head, ablation and ranks, from stores of made-up records."""

from dataclasses import replace

import pytest
from scipy import stats

from lra.config.schema import PretrainConfig, StartConfig
from lra.errors import UsageError
from reports.result_set import load_stores
from reports.tables import ablation, head_to_head, ranks
from tests.reports.synthetic import add_run, cell_config, five_tasks, made, notes_of


def test_head_to_head_pairs_seeds_and_examples(tmp_path):
    for seed, (a, b) in enumerate([(500, 480), (510, 500), (530, 500)]):
        add_run(tmp_path, a, seed=seed)
        add_run(tmp_path, b, seed=seed, variant="linear")
    add_run(tmp_path, 100, seed=9)  # has no partner
    row = made(head_to_head, tmp_path, "full", "linear").cells.iloc[0]
    assert (row["seeds"], row["difference (points)"]) == ("3", "+2.00")
    assert row["95 % interval (points)"] == "[-0.48, +4.48]"  # 2 -+ 4.3027 * 1 / sqrt(3)
    assert (row["only full"], row["only linear"]) == ("20, 10, 30", "0, 0, 0")
    assert row["McNemar p per seed"] == "<0.001, 0.002, <0.001"
    assert row["p (Holm)"] == row["p (paired t)"] == "0.074"
    assert row["detectable (points)"] == "3.26"
    for seed in range(3):
        add_run(tmp_path, 520, seed=seed, task="text")
        add_run(tmp_path, 500, seed=seed, task="text", variant="linear")
    row = made(head_to_head, tmp_path, "full", "linear").cells.iloc[1]
    assert row[["difference (points)", "p (paired t)", "p (Holm)", "detectable (points)"]].tolist() == [
        "+2.00",
        "-",
        "-",
        "-",
    ]
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        made(head_to_head, tmp_path, "full", "linaer")


def test_head_to_head_against_several_has_the_rows_of_each(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 500 + 7 * seed, seed=seed)
        add_run(tmp_path, 490 + seed, seed=seed, variant="linear")
        add_run(tmp_path, 450 + 3 * seed, seed=seed, variant="local")
    table = made(head_to_head, tmp_path, "full", "linear", "local")
    singles = [made(head_to_head, tmp_path, "full", name).cells.iloc[0] for name in ("linear", "local")]
    assert table.cells["against"].tolist() == ["linear", "local"]
    for row, single in zip(table.cells.iloc, singles, strict=True):
        kept = ["seeds", "difference (points)", "95 % interval (points)", "p (paired t)", "detectable (points)"]
        assert row[kept].tolist() == single[kept].tolist()
        assert row["only the other"] == single.iloc[-1]
    p = [float(single["p (paired t)"]) for single in singles]
    assert p[1] < p[0]
    assert float(table.cells["p (Holm)"][1]) == pytest.approx(2 * p[1], abs=0.0015)
    assert len(table.records) == 9
    with pytest.raises(UsageError, match="did you mean 'local'"):
        made(head_to_head, tmp_path, "full", "linear", "loccal")


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
    assert cells["test accuracy (%)"].tolist() == ["40.15 ± 0.13 (4)", "45.20 ± 0.20 (3)"]
    assert cells["difference to base (points)"].tolist() == ["-", "+5.10 [+4.85, +5.35] (3)"]


def test_of_equally_common_settings_the_one_run_first_is_the_base(tmp_path):
    add_run(tmp_path, 400, options={"rotary": False}, finished_at="2026-01-02T00:00:00+00:00")
    add_run(tmp_path, 410, options={"rotary": True}, finished_at="2026-01-01T00:00:00+00:00")
    cells = made(ablation, tmp_path, "full").cells
    assert cells["changed"].tolist() == ["(base)", "rotary=False"]
    assert cells["difference to base (points)"].tolist() == ["-", "-1.00 (1)"]


def test_ranks(tmp_path):
    five_tasks(tmp_path, variants=("full", "contextpool", "linear"))
    add_run(tmp_path, 900, variant="local", task="text")
    table = made(ranks, tmp_path)
    assert table.cells.to_numpy().tolist() == [["linear", "1.00"], ["contextpool", "2.00"], ["full", "3.00"]]
    assert "Critical difference (Nemenyi, 0.05): 1.48" in notes_of(table)  # 2.343 sqrt(3 * 4 / 30)
    assert "Friedman's test of no difference: p 0.007." in notes_of(table)  # chi square 10 of 2: exp(-5)
    assert "Left out because a task or a seed is missing: local." in table.notes
    for task in ("listops", "text", "retrieval", "image", "pathfinder"):
        for seed in range(2 if task == "text" else 3):
            add_run(tmp_path, 950, variant="conv", task=task, seed=seed)
    assert made(ranks, tmp_path).cells["variant"].tolist()[0] == "conv"
    table = ranks(replace(load_stores([tmp_path]), seeds=frozenset(range(3))), "quick", "matched")
    assert table.cells["variant"].tolist() == ["linear", "contextpool", "full"]


def test_ranks_count_the_seeds_and_runs_of_the_ranked_rows_alone(tmp_path):
    for task in ("listops", "text"):
        for number, variant in enumerate(("full", "contextpool")):
            add_run(tmp_path, 500 + number, variant=variant, task=task)
    alone = made(ranks, tmp_path)
    for seed in range(3):
        add_run(tmp_path, 600, variant="local", task="listops", seed=seed)
    table = made(ranks, tmp_path)
    assert "Left out because a task or a seed is missing: local." in table.notes
    assert table.caption == alone.caption == "Average ranks, profile quick, matched track, 1 seed"
    assert table.notes[0] == alone.notes[0] == "PREVIEW: one seed. No claim can rest on it."
    assert table.records == alone.records


def test_equal_differences_have_no_interval_and_the_table_says_why(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 400 + seed, seed=seed, finished_at="2026-01-01T00:00:00+00:00")
        add_run(tmp_path, 410 + seed, seed=seed, options={"rotary": True}, finished_at="2026-01-02T00:00:00+00:00")
    table = made(ablation, tmp_path, "full")
    assert table.cells["difference to base (points)"].tolist() == ["-", "+1.00 (2)"]
    assert "equal differences have no spread" in notes_of(table)
    against = made(head_to_head, tmp_path, "full [rotary=True]", "full")
    assert against.cells["95 % interval (points)"].tolist() == ["-"]
    assert "equal differences have no spread" in notes_of(against)


def test_differences_with_a_spread_have_an_interval_and_no_such_note(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 400 + seed, seed=seed, finished_at="2026-01-01T00:00:00+00:00")
        add_run(tmp_path, 410 + 2 * seed, seed=seed, options={"rotary": True})
    table = made(ablation, tmp_path, "full")
    assert "[" in table.cells["difference to base (points)"][1]
    assert "equal differences" not in notes_of(table)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("full", "full"),
        ("full [rotary=False]", "full"),
        ("full [rotary=True]", "full [rotary=True]"),
        ("linear", "linear [rotary=True]"),
        ("linear [rotary=True]", "linear [rotary=True]"),
    ],
)
def test_a_row_is_found_by_its_bare_name_and_by_its_label(tmp_path, given, found):
    add_run(tmp_path, 400)
    add_run(tmp_path, 410, options={"rotary": True})
    add_run(tmp_path, 420, variant="linear", options={"rotary": True})
    add_run(tmp_path, 430, variant="local")
    assert f"{found} against local" in made(head_to_head, tmp_path, given, "local").caption


@pytest.mark.parametrize("again", ["linear [rotary=True]", "linear [ rotary=True ]", "linear"])
def test_one_row_under_two_spellings_is_one_and_counts_once(tmp_path, again):
    add_run(tmp_path, 400)
    add_run(tmp_path, 420, variant="linear", options={"rotary": True})
    for rows in (["full", "linear", again], ["linear", again], ["linear", "full", again]):
        with pytest.raises(UsageError, match=r"^'linear \[rotary=True\]' against itself shows nothing"):
            made(head_to_head, tmp_path, *rows)


def test_an_ablation_takes_the_row_that_is_named_for_its_base(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400, seed=seed)
        add_run(tmp_path, 450, seed=seed, options={"rotary": True})
    cells = made(ablation, tmp_path, "full [rotary=True]").cells
    assert cells["changed"].tolist() == ["(base)", "rotary=False"]
    with pytest.raises(UsageError, match=r"no records of 'full \[rotary=3\]'"):
        made(ablation, tmp_path, "full [rotary=3]")


@pytest.mark.parametrize(("one", "other"), [(None, "None"), (True, "True"), (2, "2"), ([1, 2], "[1, 2]")])
def test_values_and_their_texts_are_two_settings_of_an_ablation(one, other, tmp_path):
    for seed, value in enumerate((one, one, other)):
        add_run(tmp_path, 400 + 100 * seed, variant="theirs", seed=seed, options={"w": value})
    cells = made(ablation, tmp_path, "theirs").cells
    assert cells["changed"].tolist() == ["(base)", f'w="{other}"']
    assert cells["test accuracy (%)"].tolist() == ["45.00 ± 7.07 (2)", "60.00 (1)"]


def test_an_absent_setting_is_not_a_text(tmp_path):
    add_run(tmp_path, 400, variant="theirs")
    add_run(tmp_path, 500, variant="theirs", seed=1)
    add_run(tmp_path, 600, variant="theirs", options={"w": "absent"})
    assert made(ablation, tmp_path, "theirs").cells["changed"].tolist() == ["(base)", "w=absent"]
    assert "Base on ListOps: w=(absent)." in made(ablation, tmp_path, "theirs").notes


def test_runs_with_other_budgets_are_compared_only_if_that_is_asked_for(tmp_path):
    """A start from another run, or more steps, is paid for."""
    longer = cell_config(variant="linear", track="open")
    longer = longer.model_copy(update={"start": StartConfig(run="a" * 64, weights="b" * 64, steps=100)})
    for config, right in ((cell_config(track="open"), 400), (longer, 500)):
        add_run(tmp_path, right, config=config)
    with pytest.raises(UsageError, match=r"different budgets on ListOps, 1,500 and 1,600 steps; --any-budget compares"):
        made(head_to_head, tmp_path, "full", "linear", track="open")
    table = head_to_head(load_stores([tmp_path]), "quick", "open", "full", "linear", any_budget=True)
    assert table.cells["difference (points)"].tolist() == ["-10.00"]


def test_pretraining_is_a_row_of_the_same_table_and_the_same_budget(tmp_path):
    plain = cell_config()
    own = PretrainConfig(share=0.4, mask_rate=0.1, loss="cross_entropy")
    for seed in (0, 1):
        add_run(tmp_path, 400 + seed, config=plain.model_copy(update={"seed": seed}))
        add_run(tmp_path, 420 + seed, config=plain.model_copy(update={"seed": seed, "pretrain": own}))
    table = made(head_to_head, tmp_path, "full [share=0.4]", "full")
    assert table.cells["difference (points)"].tolist() == ["+2.00"]
    assert load_stores([tmp_path]).profiles() == [("quick", "matched")]


def test_a_difference_of_survivors_names_the_lost_runs(tmp_path):
    for seed in range(5):
        add_run(tmp_path, 500 + seed * 7, variant="full", seed=seed)
        add_run(tmp_path, None if seed > 1 else 600 + seed * 3, variant="local", seed=seed)
    table = made(head_to_head, tmp_path, "local", "full")
    assert table.notes[0] == "local on ListOps lost runs: diverged (3/5). No difference counts them."


def test_a_task_without_a_difference_is_named_with_the_reason(tmp_path):
    for seed in range(2):
        for task in ("listops", "text", "image"):
            add_run(tmp_path, 500 + seed, task=task, seed=seed)
        add_run(tmp_path, 520 + seed, variant="local", seed=seed)
        add_run(tmp_path, None, variant="local", task="text", seed=seed)
        add_run(tmp_path, 520, variant="local", task="image", seed=seed + 2)
    table = made(head_to_head, tmp_path, "local", "full")
    assert table.cells["task"].tolist() == ["ListOps"]
    assert table.notes[:2] == [
        "local on Text lost runs: diverged (2/2). No difference counts them.",
        "local and full have no seed in common on Image.",
    ]


def test_a_comparison_under_a_suite_says_which_of_its_seeds_are_missing(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 500 + seed, seed=seed)
        add_run(tmp_path, 480 + seed**2, seed=seed, variant="linear")
        add_run(tmp_path, 600 + seed, seed=seed, task="text")
    add_run(tmp_path, 400, seed=1, variant="local")
    results = load_stores([tmp_path])
    table = head_to_head(results, "quick", "matched", "full", "linear", "local")
    assert table.cells["seeds"].tolist() == ["3", "1"]
    assert "no seed in common" not in notes_of(table)
    suite = replace(results, seeds=frozenset(range(5)))
    table = head_to_head(suite, "quick", "matched", "full", "linear", "local")
    assert table.cells["seeds"].tolist() == ["3 of 5", "1 of 5"]
    assert table.notes[:2] == [
        "full and linear have no seed in common on Text.",
        "full and local have no seed in common on Text.",
    ]
    assert "No interval" not in notes_of(table)
    one = head_to_head(suite, "quick", "matched", "full", "local")
    assert one.cells["seeds"].tolist() == ["1 of 5"]
    assert one.notes[0] == "PREVIEW: one common seed, which supports no claim."


def test_settings_of_one_short_name_are_two_rows_of_an_ablation(tmp_path):
    plain = cell_config(variant="performer", track="open")
    variant = plain.variant.model_copy(update={"options": plain.variant.options | {"dropout": 0.1}})
    model = plain.model.model_copy(update={"dropout": 0.1})
    for right, changes in ((400, {}), (410, {"variant": variant}), (430, {"model": model})):
        for seed in range(2):
            add_run(tmp_path, right, config=plain.model_copy(update={**changes, "seed": seed}))
    table = made(ablation, tmp_path, "performer", track="open")
    assert sorted(zip(table.cells["changed"], table.cells["test accuracy (%)"], strict=True)) == [
        ("(base)", "40.00 ± 0.00 (2)"),
        ("model.dropout=0.1", "43.00 ± 0.00 (2)"),
        ("variant.dropout=0.1", "41.00 ± 0.00 (2)"),
    ]


def test_the_base_of_an_ablation_has_the_name_of_its_row_where_that_says_more(tmp_path):
    """What all runs have is no change, and would be nowhere."""
    for layers, seed in ((2, 0), (2, 1), (3, 0)):
        add_run(tmp_path, 400, variant="local", options={"window": 4}, layers=layers, seed=seed, track="open")
    found = made(ablation, tmp_path, "local", track="open").notes
    assert "Base on ListOps: num_layers=2; local [num_layers=2, window=4]." in found


def test_a_variant_with_the_title_of_a_column_has_one_of_its_own(tmp_path):
    for variant, right in (("full", 400), ("linear", 410), ("local", 420)):
        add_run(tmp_path, right, variant=variant, variant_title="the other" if variant == "full" else None)
    table = made(head_to_head, tmp_path, "full", "linear", "local")
    assert table.cells["only the other (full)"].tolist() == ["0", "0"]
    assert table.cells["only the other"].tolist() == ["10", "20"]


def test_the_caption_counts_the_seeds_of_each_pair(tmp_path):
    for variant, seeds in (("full", (0, 1, 2)), ("linear", (0,)), ("local", (1, 2))):
        for seed in seeds:
            add_run(tmp_path, 400 + seed, variant=variant, seed=seed)
    table = made(head_to_head, tmp_path, "full", "linear", "local")
    assert table.cells["seeds"].tolist() == ["1", "2"]
    assert table.caption.endswith(", 1 to 2 seeds")
