"""Reading of several stores as one."""

import numpy as np

from reports.result_set import load_stores
from tests.reports.synthetic import add_run


def test_two_stores_are_read_as_one_and_disagreements_are_told(tmp_path):
    for part, right in (("a", 400), ("b", 401)):
        add_run(tmp_path / part, right)
    add_run(tmp_path / "b", 500, seed=1, bits=np.arange(1000) >= 500)
    results = load_stores([tmp_path / "a", tmp_path / "b"])
    assert len(results.records) == 2
    assert [problem for problem in results.problems if "another outcome" in problem] == results.problems
    assert len(results.problems) == 1
