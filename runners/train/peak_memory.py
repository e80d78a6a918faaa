# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a run, and how it was measured."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak from construction on: the CUDA allocator's, or the kernel's high-water mark of this process on Linux.

    The second counts the whole process, libraries included; `lra-bench` measures training steps alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.method = "CUDA allocator, max_memory_allocated"
        elif reset_high_water_mark():
            self.method = "process, kernel high-water mark (VmHWM)"
        else:
            self.method = "not measured on this platform"

    def read(self) -> int | None:
        """Return the peak in bytes, None where it cannot be measured."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if "VmHWM" not in self.method:
            return None
        return size_in_proc("VmHWM")


def reset_high_water_mark() -> bool:
    """Set the kernel's mark to what is resident now, if it has one. `ru_maxrss` is none: it survives fork and exec."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _STATUS.is_file()


def size_in_proc(field: str, file: Path = _STATUS) -> int | None:
    """Return the bytes that a field of a file of /proc gives in kB; None where there is no such file or field."""
    text = file.read_text() if file.is_file() else ""
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None
