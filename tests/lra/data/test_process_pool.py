"""Worker processes do not outlive the work that nobody wants any more; the tests of the corpora have the rest."""

import multiprocessing
import time

from lra.data.process_pool import in_order


def test_whoever_stops_early_waits_for_no_worker():
    before = set(multiprocessing.active_children())
    results = in_order(time.sleep, [0, 600, 600, 600], 2)
    next(results)
    results.close()  # as an error or a signal in the caller does; without an end of the workers it takes 20 minutes
    assert set(multiprocessing.active_children()) == before
