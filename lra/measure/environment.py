# SPDX-License-Identifier: Apache-2.0
"""What a run ran on: versions, device, threads. Stored with every record, never hashed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIBRARY_SETTINGS = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "DISABLE_ADDMM_CUDA_LT",
)  # fmt: skip
"""Environment variables by which the libraries below torch choose other instructions, or fewer threads than torch asks
for, and so other last bits."""
_BY_PATTERN = re.compile(
    r"(TORCHINDUCTOR|TORCH_COMPILE|TORCHDYNAMO|TORCH_(BLAS|CUDNN|LINALG|LINEAR|MKLDNN|ROCM))_"
    r"(?!.*(DEBUG|TRACE|WORKER|COMPILE_THREADS|_LOG|LOGGING|_DIR$|CACHE(S|_(DEFAULT|DUMP|WRITE|KEY|ALLOW).*)?$))"
    r"|(CUBLAS|CUBLASLT|CUDNN)_(?!LOG)"
    r"|(MKL|ONEDNN|DNNL)_(?!.*(VERBOSE|NUM_THREADS|PROFIL|DEBUG|DUMP))"
)
"""Environment variables of torch's compiler, but for those that say where and how fast it works, and of what chooses
kernels, NVIDIA's and Intel's libraries included: `CUBLASLT_WORKSPACE_SIZE` and `MKL_NUM_STRIPES` change last bits.
torch sets the number of threads itself."""


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return plain values that describe software and hardware; no host name, no paths.

    Of the environment variables, only those of `LIBRARY_SETTINGS` and of `_BY_PATTERN` are named.
    """
    return {
        "lra_harness": package_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which a checkpoint may not hold
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        **(_of_cuda() if device.type == "cuda" else {}),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "library_settings": " ".join(f"{name}={os.environ[name]}" for name in _settings() if os.environ.get(name)),
    }


def _settings() -> list[str]:
    return [*LIBRARY_SETTINGS, *sorted(filter(_BY_PATTERN.match, os.environ))]


def decisive(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an environment that the last bits of a result depend on.

    These are the versions of torch and NumPy, torch's modes, the settings of the libraries below it if there are any
    (older environments have none), the number of processes and the kind of device. On the CPU, the kind is that of the
    processor with the instructions that torch uses of it, and the number of threads counts as well, since it decides in
    which order terms are added. On CUDA, the versions of CUDA and cuDNN count, and where TF32 is allowed.
    """
    names = ["torch", "numpy", "device", "processes", "float32_matmul_precision", "deterministic_algorithms"]
    names += ["cpu", "cpu_capability", "threads"] if environment.get("device") == "cpu" else ["cuda", "cudnn", "tf32"]
    if environment.get("library_settings"):
        names.append("library_settings")
    return {name: environment.get(name) for name in names}


def same_bits(environments: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether what was computed in these environments, one after the other, gives the same bits when repeated.

    It does in a single environment on the CPU. On CUDA it does with deterministic algorithms only.
    """
    first, *others = environments
    return not others and bool(first["device"] == "cpu" or first["deterministic_algorithms"])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what the decisive parts of two environments differ: `threads 1 there, 2 here`."""
    return ", ".join(
        f"{name} {before.get(name, 'unknown')} there, {now.get(name, 'unknown')} here"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    )


def why_other_bits(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a note on why what a record of one environment says may differ here; empty if it should not differ.

    Args:
        before: The decisive part of the record's environment.
        now: That of this one.
    """
    if other := differences(before, now):
        return f"; the record is from another environment ({other})"
    return "" if same_bits([now]) else "; on CUDA the same bits are certain with --deterministic only"


def package_version() -> str:
    """Return the installed version of this project, `unknown` in a copy that was never installed."""
    try:
        return version("lra-harness")
    except PackageNotFoundError:
        return "unknown"


def _of_cuda() -> dict[str, Any]:
    """Return the versions below torch on CUDA, and for what TF32 is allowed in place of float32."""
    driver = Path("/proc/driver/nvidia/version")
    version_line = driver.read_text(errors="replace") if driver.is_file() else ""
    found = re.search(r"\d+\.\d+(\.\d+)?", version_line)
    tf32 = {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
    return {
        "cuda": torch.version.cuda or "unknown",
        "cudnn": torch.backends.cudnn.version() or 0,
        "driver": found.group() if found else "unknown",
        "tf32": ", ".join(name for name, allowed in tf32.items() if allowed) or "off",
    }


def _cpu_model() -> str:
    info, name = Path("/proc/cpuinfo"), ""
    if info.is_file():
        name = _model_in(info.read_text(encoding="utf-8", errors="replace"))
    elif platform.system() == "Darwin":  # whose platform.processor() is `arm` or `i386` for all
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError):
            name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return name or platform.processor()


def _model_in(cpuinfo: str) -> str:
    """Return the model in the text of /proc/cpuinfo, on ARM its numbers; empty if it has neither."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    numbers = ("CPU implementer", "CPU variant", "CPU part", "CPU revision")
    return fields.get("model name") or " ".join(f"{name} {fields[name]}" for name in numbers if name in fields)
