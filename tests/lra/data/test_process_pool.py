"""Worker processes do not outlive the work that nobody wants any more; the tests of the corpora have the rest."""

import multiprocessing

from lra.data.process_pool import in_order


def test_whoever_stops_early_waits_for_no_worker(tmp_path):
    before = set(multiprocessing.active_children())
    late = tmp_path / "late"
    slow = f"import pathlib, time; time.sleep(3); pathlib.Path({str(late)!r}).touch()"
    results = in_order(exec, ["", slow, slow, slow], 2)
    next(results)
    results.close()  # as an error or a signal in the caller does
    assert not late.exists()
    assert set(multiprocessing.active_children()) == before
