"""The table of the probes, from stores of made-up records."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.yaml_loader import load_file
from lra.tasks import PROBES
from reports.baselines import KNOWN
from reports.cli import command
from reports.figures.probes import probe_panels
from reports.render import rankings
from reports.result_set import load_stores
from reports.tables import accuracy, probes
from reports.tables.probes import scores_by_length, verdicts
from tests.reports.synthetic import add_attempt, add_run, notes_of

BASELINE = 30.0


def frame(*cells):
    """Return scores of one probe, trained at 64: label, length, accuracy."""
    return pd.DataFrame(
        [
            {
                "column": "Needle",
                "head": f"Needle {length}",
                "label": label,
                "length": length,
                "trained": 64,
                "accuracy": accuracy,
                "examples": 1000,
                "baseline": BASELINE,
            }
            for label, length, accuracy in cells
        ]
    )


def test_each_length_says_who_learnt_it_and_who_carried_it_over():
    found = verdicts(
        frame(
            ("A", 64, 95.0),
            ("A", 256, 91.0),
            ("B", 64, 60.0),
            ("B", 256, 54.0),
            ("C", 64, 31.0),
            ("C", 256, 31.0),
        )
    )
    assert found == [
        "Needle 64: solved by A; learnt by B.",
        "Needle 256: solved by A; learnt by B; carried over by A.",
    ]


def test_a_probe_that_nobody_learnt_says_so():
    assert verdicts(frame(("A", 64, 33.0), ("B", 64, BASELINE))) == ["Needle 64: learnt by no variant."]


@pytest.mark.parametrize(("cells", "learnt"), [(1, True), (60, False)])
def test_all_cells_share_the_error(cells, learnt):
    """A lead of three points over 1,000 examples shows alone and may be chance among sixty."""
    (found,) = verdicts(frame(("best", 64, BASELINE + 3.0), *[(f"other {i}", 64, 10.0) for i in range(cells - 1)]))
    assert ("best" in found) == learnt


def test_seeds_count_as_one_run_with_their_mean():
    (found,) = verdicts(frame(("A", 64, 99.0), ("A", 64, 20.0)))
    assert found == "Needle 64: learnt by A."


@pytest.mark.parametrize("right", [400, 401, 702])
def test_exactly_five_points_below_is_carried_over(right):
    """In floats 100 * 0.401 - 100 * 0.351 is above 5."""
    accuracies = [100.0 * (count / 1000) for count in (right, right - 50, right - 51)]
    found = verdicts(frame(("A", 64, accuracies[0]), ("A", 256, accuracies[1]), ("A", 512, accuracies[2])))
    assert ["carried over by A" in line for line in found] == [False, True, False]


def test_exactly_ninety_percent_is_solved():
    """In floats the mean of these is below 90."""
    accuracies = [100.0 * (count / 1000) for count in (850, 917, 902, 914, 917)]
    assert np.mean(accuracies) < 90.0
    assert verdicts(frame(*[("A", 64, each) for each in accuracies])) == ["Needle 64: solved by A."]


PROFILE = load_profile("probes")


def run_of(variant, seed, lengths=(64, 256)):
    return resolve(
        task="recall", variant=variant, profile=PROFILE, seed=seed, track="open",
        overrides={"data.test_length": list(lengths)},
    )  # fmt: skip


def add_probe(folder, variant, seed, near, far, **of):
    """Publish a run that has `near` and `far` of 100 right at the two lengths; None diverged."""
    lost = near is None
    bits = None if lost else np.concatenate([np.arange(100) < near, np.arange(100) < far])
    correct = None if lost else near + far
    add_run(folder, correct, config=run_of(variant, seed), title="Recall", total=200, bits=bits, **of)


def test_a_mean_of_survivors_says_so_and_a_row_without_numbers_is_there(tmp_path):
    for seed in range(3):
        add_probe(tmp_path, "full", seed, 96, 50)
        add_probe(tmp_path, "local", seed, *((95, 95) if seed == 0 else (None, None)))
        add_attempt(tmp_path, "oom", config=run_of("linear", seed))
    results = load_stores([tmp_path])
    table = probes(results, "probes", "open")
    assert table.cells["Recall 64"].to_dict() == {
        "full": "96.0",
        "linear": "OOM (3/3)",
        "local": "95.0 (1/3), diverged (2/3)",
        "Chance": "10.0",
    }
    assert "Recall 64: solved by full." in table.notes
    assert "Recall 256 (x4): learnt by full." in table.notes
    assert "k of n seeds gave a number" in notes_of(table)
    assert {table.cells.index[row] for row, _ in rankings(table)} <= {"full"}
    drawn = probe_panels(scores_by_length(results))
    texts = [[text.get_text() for text in axes.texts] for axes in drawn.axes]
    assert texts == [["96"], ["50"]]


def test_a_variant_with_the_title_of_a_baseline_keeps_its_row(tmp_path):
    add_probe(tmp_path, "local", 0, 96, 50, variant_title="Chance")
    cells = probes(load_stores([tmp_path]), "probes", "open").cells
    assert cells["Recall 64"].to_dict() == {"Chance (local)": "96.0", "Chance": "10.0"}


def test_a_profile_whose_runs_are_all_lost_is_named(tmp_path):
    add_probe(tmp_path, "full", 0, 96, 50)
    config = run_of("full", 0).model_copy(update={"profile": "mine"})
    add_attempt(tmp_path, "oom", config=config)
    for words in (["probes"], ["table", "probes"]):
        done = CliRunner().invoke(command, [*words, "--store", str(tmp_path)])
        assert done.exit_code == 0
        assert "left out: profile mine: no run of a probe" in done.stderr


def test_only_what_was_learnt_is_marked(tmp_path):
    """At the longer length nobody is above chance, and at the shorter one only two of three are."""
    for variant, near, far in (("full", 96, 12), ("local", 60, 9), ("linear", 12, 11)):
        add_probe(tmp_path, variant, 0, near, far)
    table = probes(load_stores([tmp_path]), "probes", "open")
    marked = {
        (table.cells.index[row], table.cells.columns[column]): rank for (row, column), rank in rankings(table).items()
    }
    assert marked == {("full", "Recall 64"): 1, ("local", "Recall 64"): 2}


def test_the_order_of_the_seeds_decides_no_digit_and_no_mark(tmp_path):
    """Summed in their order, the one would be 79.6 and the other 79.7."""
    for variant, counts in (("full", (761, 748, 707, 970)), ("local", (761, 707, 748, 970))):
        for seed, correct in enumerate(counts):
            config = run_of(variant, seed, lengths=[64])
            add_run(tmp_path, correct, config=config, title="Recall")
    table = probes(load_stores([tmp_path]), "probes", "open")
    assert table.cells.iloc[:-1, 0].nunique() == 1
    assert len({key.score for key in table.keys}) == 1
    assert not rankings(table)


def test_one_that_learnt_alone_is_marked(tmp_path):
    for variant, near in (("full", 12), ("local", 60), ("linear", 9)):
        add_probe(tmp_path, variant, 0, near, 10)
    table = probes(load_stores([tmp_path]), "probes", "open")
    assert [(table.cells.index[row], rank) for (row, _), rank in rankings(table).items()] == [("local", 1)]


BY_LENGTH = {"bag of tokens at 64": 24.0, "bag of tokens at 256": 4.0, "majority at 64": 9.0, "majority at 256": 9.0}


@pytest.mark.parametrize("by_length", [True, False])
def test_each_length_is_compared_with_the_baselines_at_that_length(tmp_path, by_length):
    """22 % are below the bag of tokens at the one length, and above it at the other."""
    baselines = {"chance": 2.0, "majority": 9.0, "bag of tokens": 14.0} | (BY_LENGTH if by_length else {})
    bits = np.concatenate([np.arange(1000) < 220, np.arange(1000) < 150])
    add_run(tmp_path, 370, config=run_of("full", 0), title="Recall", total=2000, bits=bits, baselines=baselines)
    results = load_stores([tmp_path])
    table = probes(results, "probes", "open")
    assert ("Recall 64: learnt by full." in table.notes) == (not by_length)
    assert ("Recall 256 (x4): learnt by full." in table.notes) == by_length
    assert ("all lengths together only" in notes_of(table)) == (not by_length)
    assert "Bag of tokens at 64" not in accuracy(results, "probes", "open").cells.index


def test_baselines_at_each_length_of_older_records_are_known(tmp_path):
    [(digest, known)] = load_file(KNOWN)["listops_distance"].items()
    config = resolve(task="listops_distance", variant="full", profile=PROFILE, seed=0, overrides={})
    bits = np.concatenate([np.arange(1000) < 230, np.arange(1000) < 150])
    pooled = {"chance": 10.0, "majority": 9.75, "bag of tokens": 17.0}
    title = "ListOps at a distance"
    add_run(tmp_path, 380, config=config, title=title, total=2000, bits=bits, baselines=pooled, digest=digest)
    scores = scores_by_length(load_stores([tmp_path]))
    assert scores["baseline"].tolist() == [known["bag of tokens at 64"], 10.0]
    assert scores["pooled"].tolist() == ["", ""]


@pytest.mark.nightly
@pytest.mark.parametrize("name", PROBES)
def test_the_known_baselines_at_each_length_are_those_that_preparing_measures(name, tmp_path):
    task = PROBES[name]
    manifest = task.prepare(task.options(**PROFILE.tasks[name].data), tmp_path, progress=False).manifest
    known = load_file(KNOWN)[name][manifest.digest]
    assert len(known) == (2 if name == "needle" else 4)
    assert known == {each: manifest.baselines[each] for each in known}


def test_rows_without_lost_runs_have_means_only(tmp_path):
    add_probe(tmp_path, "full", 0, 90, 20)
    add_probe(tmp_path, "full", 1, 100, 30)
    table = probes(load_stores([tmp_path]), "probes", "open")
    assert table.cells.loc["full"].tolist() == ["95.0", "25.0"]
    assert "gave a number" not in notes_of(table)


def test_a_row_that_lacks_a_seed_of_the_suite_solves_nothing(tmp_path):
    for seed in range(2):
        add_probe(tmp_path, "full", seed, 91, 50)
    add_probe(tmp_path, "local", 0, 99, 99)
    results = replace(load_stores([tmp_path]), seeds=frozenset(range(2)))
    table = probes(results, "probes", "open")
    assert table.cells.loc["local"].tolist() == ["99.0 (1/2)", "99.0 (1/2)"]
    assert "Recall 64: solved by full." in table.notes
    assert "k of n seeds gave a number" in notes_of(table)
    assert {table.cells.index[row] for row, _ in rankings(table)} <= {"full"}
    texts = [[text.get_text() for text in axes.texts] for axes in probe_panels(scores_by_length(results), 2).axes]
    assert texts == [["91"], ["50"]]
