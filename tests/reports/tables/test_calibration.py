"""The rank correlation of two recipes: its value, its interval, what it pairs, and what it refuses."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from attention_zoo.registry import get_variant
from lra.config.schema import PretrainConfig, VariantChoice
from lra.errors import UsageError
from reports.cli import make_tables
from reports.result_set import load_stores
from reports.statistics import rank_correlation
from reports.tables.calibration import calibration
from tests.reports.synthetic import add_run, cell_config

NAMES = ("full", "linear", "local", "conv", "performer")


def store(folder, scores, **of):
    for name, correct in zip(NAMES, scores, strict=False):
        add_run(folder, correct, variant=name, **of)
    return folder


@pytest.fixture
def folder(tmp_path):
    store(tmp_path, (500, 400, 300, 200, 100))
    store(tmp_path, (410, 520, 300, 200, 150), profile="modern")
    store(tmp_path, (500, 400, 300, 200), task="text")
    store(tmp_path, (100, 200, 300, 400), task="text", profile="modern")
    store(tmp_path, (100, 200, 300), task="image")
    store(tmp_path, (100, 200, 300), task="image", profile="modern")
    return tmp_path


def cells(table):
    return {row["task"]: dict(row) for row in table.cells.to_dict("records")}


def test_the_orders_of_two_profiles(folder):
    table = calibration(load_stores([folder]), "quick", "modern")
    found = cells(table)
    assert list(found) == ["listops", "text", "mean of 2 tasks"]
    assert (found["listops"]["variants"], found["listops"]["tau"]) == ("5", "+0.80")  # one of ten pairs is turned
    assert found["listops"]["p"] == "0.083"
    low, high = map(float, found["listops"]["95 % interval"].strip("[]").split(", "))
    assert low < 0.8 < high == 1.0
    assert (found["text"]["tau"], found["text"]["95 % interval"]) == ("-1.00", "-")
    # (500 + 500, 400 + 400, ...) against (410 + 100, 520 + 200, 300 + 300, 200 + 400): 510, 720, 600, 600
    assert found["mean of 2 tasks"]["tau"] == f"{stats.kendalltau([4, 3, 2, 1], [51, 72, 60, 60]).statistic:+.2f}"
    assert found["mean of 2 tasks"]["of"] == "conv, full, linear, local"
    assert any("Fewer than 4 common variants: image (3)" in note for note in table.notes)
    assert len(table.records) == 18
    (same,) = make_tables("calibration", ("quick", "modern"), load_stores([folder]))
    assert cells(same) == found


def test_equal_means_over_tasks_and_seeds_are_a_tie(tmp_path):
    """`full` and `linear` have 3,002 right answers each, spread in two ways; their means per task are thirds."""
    right = {"full": (500, 500, 501, 500, 500, 501), "linear": (501, 501, 501, 500, 500, 499)}
    right |= {"local": (400,) * 6, "conv": (600,) * 6, "performer": (450,) * 6}
    other = {"full": 700, "linear": 500, "local": 600, "conv": 800, "performer": 550}
    for (variant, counts), (place, task) in itertools.product(right.items(), enumerate(("listops", "text"))):
        for seed, correct in enumerate(counts[3 * place : 3 * place + 3]):
            add_run(tmp_path, correct, variant=variant, task=task, seed=seed)
            add_run(tmp_path, other[variant], variant=variant, task=task, seed=seed, profile="modern")
    found = cells(calibration(load_stores([tmp_path]), "quick", "modern"))["mean of 2 tasks"]
    expected = stats.kendalltau([sum(counts) for counts in right.values()], [other[variant] for variant in right])
    assert found["tau"] == f"{expected.statistic:+.2f}"


def test_a_published_table_is_the_other_side(tmp_path):
    store(tmp_path, (600, 500, 400, 100, 450))
    for name, correct in (("performer", 300), ("bigbird", 400)):
        add_run(tmp_path, correct, variant=name, task="text")
    table = calibration(load_stores([tmp_path]), "quick", "published:original")
    assert any("local: a block has the tokens that are equal modulo" in note for note in table.notes)
    assert any("sparse: causal" in note for note in table.notes)  # not a flag of all rows
    found = cells(table)
    assert found["listops"]["of"] == "full, linear, local, performer"  # conv is not in it
    # 600, 500, 400, 450 against 36.37, 16.13, 15.82, 18.01: of six pairs, linear and performer are turned
    assert found["listops"]["tau"] == f"{(5 - 1) / 6:+.2f}"
    turned = cells(calibration(load_stores([tmp_path]), "published:original", "quick"))
    assert turned["listops"]["tau"] == found["listops"]["tau"]


def test_a_published_row_that_names_our_default_is_our_row(tmp_path):
    for name, correct in (("lion", 500), ("full", 400)):
        choice = VariantChoice(name=name, options=get_variant(name).config().to_dict())
        add_run(tmp_path, correct, config=cell_config(variant=name).model_copy(update={"variant": choice}))
    with pytest.raises(UsageError, match=r"listops has 1 \(lion( \[.*\])?\)"):
        calibration(load_stores([tmp_path]), "quick", "published:lion")


@pytest.mark.parametrize("further", [{"state_size": 2}, {}, None])
def test_a_published_row_with_options_is_no_row_with_further_ones(tmp_path, further):
    """Nor one that was pretrained, which stands for `None` here."""
    for index, name in enumerate(("s5", "mamba", "hgrn", "tnn", "s4d")):
        config = cell_config(variant=name)
        if name == "s4d":
            options = get_variant(name).config.from_dict({"initialisation": "legs"} | (further or {})).to_dict()
            config = config.model_copy(update={"variant": VariantChoice(name=name, options=options)})
            if further is None:
                config = config.model_copy(
                    update={"pretrain": PretrainConfig(share=0.5, mask_rate=0.1, loss="cross_entropy")}
                )
        add_run(tmp_path, 500 + 10 * index, config=config)
    found = cells(calibration(load_stores([tmp_path]), "quick", "published:state_space"))
    assert found["listops"]["variants"] == ("5" if further == {} else "4")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("quick", "quick"), "against itself shows nothing"),
        (("quick", "modren"), "no runs of profile 'modren'; did you mean 'modern'?"),
        (("quick", "quick:open"), "no runs of profile 'quick:open'"),
        (("quick", "published:orignal"), "no published table 'published:orignal'; did you mean 'original'?"),
        (("quick", "original"), "published:original is the published table"),
        (("published:original", "published:skyformer"), "the runs of at least one profile"),
    ],
)
def test_what_cannot_be_compared_is_told(folder, names, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        calibration(load_stores([folder]), *names)


def test_three_common_variants_are_refused_by_name(tmp_path):
    store(tmp_path, (500, 400, 300))
    store(tmp_path, (500, 400, 300), profile="modern")
    store(tmp_path, (500, 400, 300, 200), task="image")
    message = r"quick and modern need 4 variants in common on a task: listops has 3 \(full, linear, local\)$"
    with pytest.raises(UsageError, match=message):
        calibration(load_stores([tmp_path]), "quick", "modern")


def test_a_run_without_a_number_pairs_with_nothing(folder):
    add_run(folder, None, variant="full", seed=1)
    assert cells(calibration(load_stores([folder]), "quick", "modern"))["listops"]["variants"] == "4"


def test_the_bootstrap_is_that_of_resampled_pairs():
    """The quick form against one that draws pairs and calls scipy for each resample."""
    random = np.random.default_rng(1)
    first = random.integers(0, 6, 9).astype(float)
    second = first + random.normal(size=9)
    found = rank_correlation(first.tolist(), second.tolist(), resamples=4000)
    assert found.tau == pytest.approx(stats.kendalltau(first, second).statistic)
    draws = random.integers(0, 9, (1500, 9))
    taus = [stats.kendalltau(first[draw], second[draw]).statistic for draw in draws]
    low, high = np.nanquantile(taus, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)
    again = rank_correlation(first.tolist(), second.tolist(), resamples=4000)
    assert again == found


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random, rho, held = np.random.default_rng(2), 0.6, []
    truth = 2 / math.pi * math.asin(rho)
    for _ in range(200):
        x, noise = random.normal(size=(2, 20))
        found = rank_correlation(x.tolist(), (rho * x + math.sqrt(1 - rho**2) * noise).tolist(), resamples=400)
        held.append(found.low <= truth <= found.high)
    assert 0.86 < np.mean(held) <= 0.99


def test_full_agreement_has_no_interval_and_equal_values_no_order():
    full = rank_correlation([1, 2, 3, 4], [5, 6, 7, 8])
    assert full.tau == 1.0
    assert math.isnan(full.low)
    assert full.p_value == pytest.approx(2 / 24)  # of 24 orders, two are as extreme
    assert math.isnan(rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]).tau)
    for count in range(4, 30):  # of which some have a tau of 0.9999999999999999
        for order in (1, -1):
            found = rank_correlation(list(range(count)), [order * each for each in range(count)], resamples=50)
            assert (math.isnan(found.low), math.isnan(found.high)) == (True, True), count
        found = rank_correlation(list(range(count)), [1, 0, *range(2, count)], resamples=50)
        assert found.low < found.high <= 1.0
    with pytest.raises(ValueError, match="3 and 2 values"):
        rank_correlation([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    ("ranks", "origins", "paired"), [((4, 4), "aa", True), ((4, 8), "aa", False), ((4, 4), "ab", False)]
)
def test_two_programs_of_one_name_are_no_pair(folder, ranks, origins, paired):
    for profile, rank, origin in zip(("quick", "modern"), ranks, origins, strict=True):
        choice = VariantChoice(name="my.py:Mine", options={"rank": rank}, origin=f"my.py source {origin}")
        add_run(folder, 450, config=cell_config(profile=profile).model_copy(update={"variant": choice}))
    table = calibration(load_stores([folder]), "quick", "modern")
    assert ("my.py:Mine" in cells(table)["listops"]["of"]) == paired
    (*told,) = (note for note in table.notes if note.startswith("Not paired, since the two sides have another program"))
    assert bool(told) != paired
    assert paired or told[0].count("my.py:Mine [") == 2


def test_a_row_that_is_lost_on_one_side_has_the_same_settings(folder):
    add_run(folder, 450, config=cell_config(profile="quick", variant="nystrom"))
    add_run(folder, None, config=cell_config(profile="modern", variant="nystrom"))
    add_run(folder, 450, config=cell_config(profile="modern", variant="nystrom", options={"num_landmarks": 7}))
    notes = calibration(load_stores([folder]), "quick", "modern").notes
    (told,) = (note for note in notes if note.startswith("Not paired"))
    assert told.endswith(" or other settings: nystrom [num_landmarks=7] on listops.")
    assert any(note.startswith("Left out of") and "nystrom on listops: diverged (1/1)" in note for note in notes)


def test_a_pair_of_one_program_stays_one_whatever_differs_on_another_task(folder):
    for profile, task, rank in (
        ("quick", "listops", 4),
        ("modern", "listops", 4),
        ("quick", "text", 4),
        ("modern", "text", 8),
    ):
        choice = VariantChoice(name="my.py:Mine", options={"rank": rank}, origin="my.py source a")
        config = cell_config(task=task, profile=profile).model_copy(update={"variant": choice})
        add_run(folder, 450, config=config)
    table = calibration(load_stores([folder]), "quick", "modern")
    assert [cells(table)[task]["variants"] for task in ("listops", "text")] == ["6", "4"]
    assert "my.py:Mine [rank=4]" in cells(table)["listops"]["of"]
    (told,) = (note for note in table.notes if note.startswith("Not paired"))
    assert told.endswith(" or other settings: my.py:Mine [rank=4] on text, my.py:Mine [rank=8] on text.")
    # A row that is alone is named where another row of its variant is paired, too.
    add_run(folder, 460, config=config.model_copy(update={"profile": "quick"}))
    (told,) = (note for note in calibration(load_stores([folder]), "quick", "modern").notes if "Not paired" in note)
    assert told.endswith(" or other settings: my.py:Mine [rank=4] on text.")


def test_other_data_of_one_name_on_each_side_is_named(tmp_path):
    for profile, digest in (("quick", "d" * 64), ("modern", "e" * 64)):
        store(tmp_path, (500, 400, 300, 200), profile=profile, digest=digest, task="text")
        store(tmp_path, (500, 400, 300, 200), profile=profile)
    notes = calibration(load_stores([tmp_path]), "quick", "modern").notes
    words = "dddddddd in profile quick, matched track; eeeeeeee in profile modern, matched track"
    assert [note for note in notes if "other data" in note] == [f"text, made up: other data on each side: {words}."]


def test_each_profile_has_seeds_of_its_own(tmp_path):
    for seed in range(2):
        store(tmp_path, (500, 400, 300, 200), seed=seed)
    store(tmp_path, (500, 400, 300, 200), profile="modern", seed=5)
    table = calibration(load_stores([tmp_path]), "quick", "modern")
    assert table.caption.endswith(", 2 seeds and 1 seed")
    assert table.notes[0] == "PREVIEW: one seed. No claim can rest on it."


def test_a_row_that_is_left_out_for_a_lost_seed_is_named(folder):
    add_run(folder, None, variant="linear", seed=9)
    table = calibration(load_stores([folder]), "quick", "modern")
    assert "linear" not in cells(table)["listops"]["of"]
    (note,) = (note for note in table.notes if "Left out" in note)
    assert note.startswith(
        "Left out of profile quick, matched track, since a run is lost or missing: linear on listops: "
    )
    assert note.endswith("diverged (1/2).")


def test_a_task_whose_recipe_changed_between_runs_is_named(folder):
    """As after an edit of one's own profile: its runs stand under two names, and the mean is over fewer tasks."""
    config = cell_config(variant="full", seed=1)
    add_run(folder, 450, config=config.model_copy(update={"train": config.train.model_copy(update={"lr": 0.5})}))
    table = calibration(load_stores([folder]), "quick", "modern")
    assert list(cells(table)) == ["text"]
    (note,) = (note for note in table.notes if "Left out" in note)
    assert note == (
        "Left out of profile quick, matched track, since their runs have several recipes: "
        "quick [lr=0.001] (listops); quick [lr=0.5] (listops)."
    )


def test_a_row_that_lacks_a_seed_of_the_suite_is_not_compared(folder):
    for profile in ("quick", "modern"):
        for name in NAMES[1:]:
            add_run(folder, 500, variant=name, profile=profile, seed=1)
    suite = replace(load_stores([folder]), seeds=frozenset(range(2)))
    assert cells(calibration(suite, "quick", "modern"))["listops"]["of"] == "conv, linear, local, performer"


@pytest.mark.parametrize(
    ("scores", "told"), [((500, 400, 300, 200), "-: a full agreement"), ((300, 300, 300, 300), "Tau -: all accuracies")]
)
def test_no_order_is_no_full_agreement(tmp_path, scores, told):
    store(tmp_path, (500, 400, 300, 200), profile="quick")
    store(tmp_path, scores, profile="modern")
    notes = calibration(load_stores([tmp_path]), "quick", "modern").notes
    assert [note.startswith(told) for note in notes if note.startswith(("-:", "Tau -:"))] == [True]
