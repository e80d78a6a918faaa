# SPDX-License-Identifier: Apache-2.0
"""The measurements of `lra-bench`: the memory of each variant in its own process, then the times of all in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attention_zoo import get_variant
from attention_zoo.program import reads_below
from lra.config.profiles import Profile
from lra.config.schema import RunConfig, distinct
from lra.measure.environment import describe_environment
from lra.results.bench_format import REFERENCE, is_reference
from lra.results.bench_records import BenchRecord, Timing, settings_id

from ..arithmetic import set_arithmetic
from ..train.run import check_process, check_sources, is_out_of_memory
from .memory_process import MemoryReply, MemoryRequest, measure_in_subprocess
from .timing import WARMUP_STEPS, TimingPlan, speed_ratio, time_in_turns
from .workload import Workload, workload_config

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPlan:
    """What to measure, and how."""

    variants: Sequence[str]
    """The variants, `full` included, because the others are compared with it."""
    lengths: Sequence[int]
    task: str
    profile: Profile
    device: torch.device
    threads: int
    batch: int
    tokens: int | None = None
    """Tokens per step; if given, they determine the batch size instead of `batch`."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    timing: TimingPlan = field(default_factory=TimingPlan)
    memory_limit: int | None = None

    def batch_size(self, length: int) -> int:
        """Return the number of sequences in a step, at least one."""
        return self.batch if self.tokens is None else max(1, self.tokens // length)

    def configs(self) -> dict[int, list[RunConfig]]:
        """Resolve the configuration of every step, by length.

        Raises:
            UsageError: A name or a setting is wrong.
        """
        return {
            length: distinct(
                workload_config(
                    task=self.task,
                    variant=variant,
                    profile=self.profile,
                    length=length,
                    batch_size=self.batch_size(length),
                    overrides=dict(self.overrides),
                )
                for variant in self.variants
            )
            for length in self.lengths
        }


def measure_length(plan: BenchPlan, configs: Sequence[RunConfig], say: Callable[[str], None]) -> list[BenchRecord]:
    """Measure all variants at one length.

    Memory comes first, in a process for each variant: a variant that does not fit is not timed, and running out of
    memory does not end this process.

    Args:
        plan: How to measure.
        configs: The configuration of each variant.
        say: Prints what is being measured.

    Raises:
        UsageError: The code of a variant has changed meanwhile.
    """
    torch.set_num_threads(plan.threads)
    set_arithmetic()
    replies: dict[str, MemoryReply] = {}
    for config in configs:
        name = config.variant.name
        say(f"{name}, length {config.model.max_length}: memory")
        request = MemoryRequest(
            config=config, device=str(plan.device), threads=plan.threads, memory_limit=plan.memory_limit
        )
        replies[name] = measure_in_subprocess(request)
    say(f"length {configs[0].model.max_length}: time")
    environment = describe_bench_environment(plan.device)
    processor = environment["device" if plan.device.type == "cuda" else "cpu"]
    fitting = [config for config in configs if replies[config.variant.name].status == "ok"]
    seconds = time_variants(fitting, plan)
    for config in configs:
        check_process(config)
        check_sources(config)  # the processes that measured memory have imported the files again
    # The ratio is kept without the options of full attention, so with others there is none.
    comparable = any(is_reference(config) for config in configs)
    records = []
    for config in configs:
        name, reply = config.variant.name, replies[config.variant.name]
        times = seconds.get(name)
        if times is None and reply.status == "ok":
            reply = reply.model_copy(
                update={"status": "oom", "detail": "out of memory while the models of the other variants were loaded"}
            )
        both = times is not None and REFERENCE in seconds and comparable
        records.append(
            BenchRecord(
                variant_title=get_variant(config.variant.name).title,
                settings_id=settings_id(config, device=processor, threads=plan.threads, memory_limit=plan.memory_limit),
                status=reply.status,
                detail=reply.detail,
                config=config,
                device_type=plan.device.type,
                threads=plan.threads,
                memory_limit=plan.memory_limit,
                parameters=reply.parameters,
                backend=reply.backend,
                timing=None if times is None else Timing(seconds=times, warmup_steps=WARMUP_STEPS),
                speed_ratio=speed_ratio(seconds[name], seconds[REFERENCE]) if both else None,
                memory=reply.memory,
                flops=reply.flops,
                environment=environment,
                measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )
    return records


def time_variants(configs: Sequence[RunConfig], plan: BenchPlan) -> dict[str, list[float]]:
    """Time the variants in turns, in this process; one that runs out of memory is missing in the result.

    Raises:
        UsageError: The code of a variant reads here what it did not read in the trial from which its id comes.
    """
    works: dict[str, Workload] = {}
    for config in configs:
        try:
            with reads_below(time_variants) as read:
                work = Workload(config, plan.device)
                for _ in range(WARMUP_STEPS):
                    work.step()
                work.clear()
            check_process(config, read)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            works[config.variant.name] = work
    if not works:
        return {}

    def run(work: Workload) -> Callable[[], None]:
        def step() -> None:
            work.step()
            work.clear()

        return step

    synchronise = (lambda: torch.cuda.synchronize(plan.device)) if plan.device.type == "cuda" else (lambda: None)
    return time_in_turns({name: run(work) for name, work in works.items()}, plan.timing, synchronise=synchronise)


def describe_bench_environment(device: torch.device) -> dict[str, Any]:
    """Describe the machine as a run does, and add the frequency governor of the processor."""
    governor = GOVERNOR.read_text().strip() if GOVERNOR.is_file() else "unknown"
    return describe_environment(device) | {"frequency_governor": governor}
