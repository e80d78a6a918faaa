# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a run, and how it was measured."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak from construction on: the CUDA allocator's, or the kernel's high-water mark of this process on Linux.

    Evaluation is left out: it has batches of another size. The mark of the kernel counts the whole process, libraries
    included; `lra-bench` measures training steps alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.used: int | None = None
        """Highest number of bytes in use so far, up to the last pause; None where it cannot be measured."""
        self.reserved: int | None = None
        """Highest number of bytes that torch held of a CUDA device so far, in use or kept for later."""
        self.method = "not measured on this platform"
        if device.type == "cuda":
            self.method = "CUDA allocator, max_memory_allocated, without evaluation"
        elif reset_high_water_mark():
            self.method = "process, kernel high-water mark (VmHWM), without evaluation"
        self._is_paused = False
        self._start_again()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside the context."""
        self.update()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self._start_again()

    def update(self) -> None:
        """Take in what has happened since the start or the last pause; in a pause, do nothing."""
        if self._is_paused:
            return
        if self.device.type == "cuda":
            self.used = max(self.used or 0, torch.cuda.max_memory_allocated(self.device))
            self.reserved = max(self.reserved or 0, torch.cuda.max_memory_reserved(self.device))
        elif "VmHWM" in self.method:
            self.used = max(self.used or 0, size_in_proc("VmHWM") or 0) or None

    def _start_again(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # or what a pause has left there would count as reserved
            torch.cuda.reset_peak_memory_stats(self.device)
        elif "VmHWM" in self.method:
            reset_high_water_mark()


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
