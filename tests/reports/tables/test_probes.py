import pandas as pd
import pytest

from reports.tables.probes import verdicts

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
