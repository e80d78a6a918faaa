# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a function call, measured by counters that share no code.

On CPU the reported number is what torch's allocator handed out, and the check is the kernel's high-water mark of the
process. The kernel's number is right only with `PINNED_MALLOC` in the environment from the start of the process:
otherwise fragmentation of the heap inflates it, most for the variants that need least. `ru_maxrss` cannot be used at
all, because a process inherits it through fork and exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..train.peak_memory import reset_high_water_mark, size_in_proc

PINNED_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""Settings of glibc: one heap, and each block of 64 KiB or more is taken from the kernel and returned at once."""
ALLOCATOR_COUNTER = "torch profiler, allocator events"
KERNEL_COUNTER = "kernel high-water mark, fresh process, pinned malloc"
CUDA_COUNTER = "CUDA allocator, max_memory_allocated"


def allocator_peak(run: Callable[[], None]) -> int:
    """Return the peak, in bytes, of what torch's CPU allocator handed out during a call of `run`."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def kernel_peak(run: Callable[[], None]) -> int | None:
    """Return by how many bytes the resident memory of the process rose at most; None where the kernel does not tell."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library, which has nothing to trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if not reset_high_water_mark():
        return None
    before = size_in_proc("Rss", Path("/proc/self/smaps_rollup"))
    run()
    peak = size_in_proc("VmHWM")
    return None if before is None or peak is None else peak - before


def cuda_peak(run: Callable[[], None], device: torch.device) -> tuple[int, int]:
    """Return the peak bytes that the CUDA allocator handed out beyond those before, and the peak it had reserved."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, torch.cuda.max_memory_reserved(device)


def self_test(device: torch.device) -> None:
    """Allocate 48 MiB for a moment, as three tensors of 16 MiB that are written to; every counter must see that."""
    held = [torch.ones(4 * 2**20, device=device) for _ in range(3)]
    del held
