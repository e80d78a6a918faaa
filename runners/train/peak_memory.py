# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a run, and how it was measured."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Peak from construction on: the CUDA allocator's, or the kernel's high-water mark of this process on Linux.

    The second counts the whole process, libraries included; `lra-bench` measures training steps alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.method = "CUDA allocator, max_memory_allocated"
        elif _reset_high_water_mark():
            self.method = "process, kernel high-water mark (VmHWM)"
        else:
            self.method = "not measured on this platform"

    def read(self) -> int | None:
        """Return the peak in bytes, None where it cannot be measured."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if "VmHWM" not in self.method:
            return None
        match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return int(match.group(1)) * 1024 if match else None


def _reset_high_water_mark() -> bool:
    """Reset the high-water mark. `ru_maxrss` cannot be used: it survives fork and exec."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.is_file()
