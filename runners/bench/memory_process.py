# SPDX-License-Identifier: Apache-2.0
"""One memory measurement in its own process: `measure_in_subprocess` starts it and reads its answer.

The process (`python -m` this module) reads a `MemoryRequest` from standard input and prints a `MemoryReply` as the last
line of its output.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from lra.config.schema import RunConfig, Section
from lra.measure.flops import FlopCount, count_flops
from lra.models.transformer import count_parameters
from lra.results.bench_records import MemoryMeasurement

from .. import fresh_python
from ..arithmetic import set_arithmetic
from ..train.compiled import uncompiled
from ..train.peak_memory import size_in_proc
from ..train.run import is_out_of_memory
from .memory import (
    ALLOCATOR_COUNTER,
    CUDA_COUNTER,
    KERNEL_COUNTER,
    PINNED_MALLOC,
    allocator_peak,
    cuda_peak,
    kernel_peak,
    self_test,
)
from .workload import Workload

REPEATS = 3


class MemoryRequest(Section):
    """What to measure."""

    config: RunConfig
    device: str
    threads: int
    memory_limit: int | None = None
    """Bytes that the process may allocate on CPU after its start; None allows what the machine has available."""


class MemoryReply(Section):
    """The measurement, or why there is none."""

    status: Literal["ok", "oom", "failed"]
    detail: str = ""
    parameters: int | None = None
    backend: str = ""
    memory: MemoryMeasurement | None = None
    flops: FlopCount | None = None


def measure_in_subprocess(request: MemoryRequest) -> MemoryReply:
    """Measure in a new process with pinned malloc; return a reply even if that process crashes."""
    done = subprocess.run(
        fresh_python.command(__name__),
        input=request.model_dump_json(),
        env=fresh_python.environment() | PINNED_MALLOC,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        return MemoryReply(status="oom", detail="the kernel killed the process, as it does when memory runs out")
    lines, errors = done.stdout.splitlines(), done.stderr.splitlines()
    if done.returncode != 0 or not lines:
        return MemoryReply(status="failed", detail=f"exit status {done.returncode}: {errors[-1] if errors else ''}")
    return MemoryReply.model_validate(json.loads(lines[-1]))


def measure(request: MemoryRequest) -> MemoryReply:
    """Measure in this process, which must be new: earlier allocations would change what the kernel reports."""
    device = torch.device(request.device)
    torch.set_num_threads(request.threads)
    set_arithmetic()
    try:
        with _memory_limit(request.memory_limit) if device.type == "cpu" else nullcontext():
            work = Workload(request.config, device)
            with uncompiled(compiled=request.config.train.compile):  # operators are counted as they are written
                flops = count_flops(work.step)
            work.step()
            memory = _measure_memory(work, device)
            work.clear()
        return MemoryReply(
            status="ok", parameters=count_parameters(work.model), backend=work.backend, memory=memory, flops=flops
        )
    except (MemoryError, RuntimeError, ValueError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        return MemoryReply(status="oom" if is_out_of_memory(error) else "failed", detail=detail)


def _measure_memory(work: Workload, device: torch.device) -> MemoryMeasurement:
    """Measure the self-test allocation and then `REPEATS` steps, with each counter of the device."""
    if device.type == "cuda":
        self_test_bytes, _ = cuda_peak(lambda: self_test(device), device)
        peaks = []
        for _ in range(REPEATS):
            work.clear()
            peaks.append(cuda_peak(work.step, device))
        return MemoryMeasurement(
            counter=CUDA_COUNTER,
            step_bytes=[step for step, _ in peaks],
            check_counter="",
            check_bytes=[],
            self_test_bytes=self_test_bytes,
            self_test_check_bytes=None,
            state_bytes=work.state_bytes(),
            reserved_bytes=max(reserved for _, reserved in peaks),
        )
    # The kernel's counter goes first: the profiler of the other one allocates memory that the kernel would count.
    self_test(device)
    self_test_check_bytes = kernel_peak(lambda: self_test(device))
    check = []
    for _ in range(REPEATS):
        work.clear()
        check.append(kernel_peak(work.step))
    self_test_bytes = allocator_peak(lambda: self_test(device))
    step = []
    for _ in range(REPEATS):
        work.clear()
        step.append(allocator_peak(work.step))
    return MemoryMeasurement(
        counter=ALLOCATOR_COUNTER,
        step_bytes=step,
        check_counter=KERNEL_COUNTER,
        check_bytes=[peak for peak in check if peak is not None],
        self_test_bytes=self_test_bytes,
        self_test_check_bytes=self_test_check_bytes,
        state_bytes=work.state_bytes(),
    )


@contextmanager
def _memory_limit(limit: int | None) -> Iterator[None]:
    """Limit the address space inside the block: what does not fit raises an error before the kernel kills a process.

    The limit ends with the block, so that an error can be described, which takes memory too.
    """
    # The threads and libraries, and the modules that torch's optimisers import, take their memory before the limit.
    torch.optim.AdamW([torch.ones(64, 64) @ torch.ones(64, 64)])
    if limit is None:
        limit = size_in_proc("MemAvailable", Path("/proc/meminfo"))
    taken = size_in_proc("VmSize")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if limit is not None and taken is not None:
        resource.setrlimit(resource.RLIMIT_AS, (taken + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    print(measure(MemoryRequest.model_validate_json(sys.stdin.read())).model_dump_json())  # noqa: T201 - the reply
