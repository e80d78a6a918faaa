"""The peak memory of a run leaves evaluation out."""

import pytest
import torch

from runners.train.peak_memory import PeakMemory, reset_high_water_mark

MIB = 2**20


def allocate(count):
    """Touch fresh memory, which is given back at once since it is large."""
    torch.ones(count * MIB, dtype=torch.uint8)


@pytest.mark.skipif(not reset_high_water_mark(), reason="the kernel has no high-water mark that can be reset")
def test_what_happens_in_a_pause_does_not_count():
    memory = PeakMemory(torch.device("cpu"))
    before = memory.used
    assert before is None
    allocate(100)
    with memory.paused():
        first = memory.used
        allocate(400)
        memory.update()  # as a checkpoint does that is saved in an evaluation
    memory.update()
    assert memory.used < first + 100 * MIB
    allocate(200)
    memory.update()
    assert 50 * MIB < memory.used - first < 200 * MIB
    assert memory.reserved is None


def test_on_cuda_what_torch_holds_is_told_beside_what_is_in_use(monkeypatch):
    peaks = {"max_memory_allocated": 0, "max_memory_reserved": 0}
    for name in peaks:
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: peaks[name])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update(dict.fromkeys(peaks, 1)))
    memory = PeakMemory(torch.device("cuda"))
    peaks.update(max_memory_allocated=5, max_memory_reserved=8)
    with memory.paused():
        peaks.update(max_memory_allocated=50, max_memory_reserved=80)
    memory.update()
    assert (memory.used, memory.reserved) == (5, 8)
