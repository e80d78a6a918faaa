"""What of an environment decides the last bits of a result."""

import platform
import subprocess

import pytest
import torch

from lra.measure import environment
from lra.measure.environment import decisive, describe_environment, differences, same_bits, why_other_bits

HERE = describe_environment(torch.device("cpu")) | {"processes": 1}


@pytest.mark.parametrize(
    "name", ["torch", "numpy", "device", "processes", "float32_matmul_precision", "cpu", "cpu_capability", "threads"]
)
def test_another_value_of_what_decides_is_told(name):
    assert differences(decisive(HERE | {name: "another"}), decisive(HERE)).startswith(f"{name} another there, ")


@pytest.mark.parametrize(
    "name",
    [
        "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "OMP_DYNAMIC", "TORCHINDUCTOR_USE_FAST_MATH", "TORCH_COMPILE_DEFAULT",
        "TORCH_LINEAR_FLATTEN_3D", "TORCH_BLAS_PREFER_CUBLASLT", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS",
        "TORCHINDUCTOR_PROLOGUE_FUSION", "TORCHINDUCTOR_CPP_GEMM_CACHE_BLOCKING",
        "TORCHINDUCTOR_COORDINATE_DESCENT_CHECK_ALL_DIRECTIONS", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE",
        "CUBLAS_EMULATION_STRATEGY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "MKL_NUM_STRIPES", "MKL_DYNAMIC",
        "OMP_THREAD_LIMIT", "DNNL_DEFAULT_FPMATH_MODE",
    ],
)  # fmt: skip
def test_settings_of_the_libraries_below_torch_decide_in_both_directions(name, monkeypatch):
    before = decisive(HERE)
    monkeypatch.setenv(name, "another")
    now = decisive(describe_environment(torch.device("cpu")) | {"processes": 1})
    assert differences(before, now) == f"library_settings unknown there, {name}=another here"
    assert differences(now, before) == f"library_settings {name}=another there, unknown here"
    assert "library_settings" not in before  # older checkpoints are of an environment without any


def test_where_the_compiler_works_decides_nothing(monkeypatch):
    for name in (
        "TORCH_CUDNN_V8_API_DEBUG", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS",
        "TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_CACHE_DUMP_FILE_PATH", "TORCH_COMPILE_FORCE_DISABLE_CACHES",
        "TORCHINDUCTOR_WORKER_LOGPATH", "MKL_NUM_THREADS", "MKL_VERBOSE", "ONEDNN_VERBOSE", "MKLROOT",
    ):  # fmt: skip
        monkeypatch.setenv(name, "/a/folder")
    assert describe_environment(torch.device("cpu"))["library_settings"] == HERE["library_settings"]


def test_the_load_and_the_version_of_this_project_decide_nothing():
    assert decisive(HERE | {"load_average": 9.0, "lra_harness": "9.9"}) == decisive(HERE)


@pytest.mark.parametrize("name", ["cuda", "cudnn", "tf32", "torch"])
def test_on_cuda_the_versions_below_torch_decide_and_processor_and_threads_do_not(name):
    there = HERE | {"device": "a GPU", "cuda": "12.4", "cudnn": 90100, "tf32": "off"}
    assert differences(decisive(there | {name: "another"}), decisive(there)).startswith(f"{name} another there, ")
    assert decisive(there | {"cpu": "another", "threads": 99, "driver": "another"}) == decisive(there)


def test_bits_repeat_in_one_environment_of_the_cpu_or_with_deterministic_algorithms():
    here = decisive(HERE)
    gpu = here | {"device": "a GPU"}
    assert same_bits([here])
    assert not same_bits([gpu])
    assert same_bits([gpu | {"deterministic_algorithms": True}])
    assert not same_bits([here, gpu])
    assert not same_bits([gpu, here])


def test_it_is_told_why_a_record_may_have_other_bits():
    here = decisive(HERE)
    gpu = here | {"device": "a GPU"}
    assert why_other_bits(here, here) == ""
    assert why_other_bits(gpu, here).startswith("; the record is from another environment (device a GPU there")
    assert why_other_bits(gpu, gpu).endswith("with --deterministic only")
    assert why_other_bits(gpu | {"deterministic_algorithms": True}, gpu | {"deterministic_algorithms": True}) == ""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A B 3\nmodel name\t: C\nCPU part\t: 0xd0c\n", "A B 3"),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n",
            "CPU implementer 0x41 CPU variant 0x3 CPU part 0xd0c CPU revision 1",
        ),
        ("processor\t: 0\n", platform.processor()),
    ],
)
def test_processors_have_the_name_of_their_model(monkeypatch, cpuinfo, expected):
    """On ARM, Linux gives numbers only; `aarch64` would put the speeds of all of them into one row."""
    monkeypatch.setattr(environment.Path, "read_text", lambda *_, **__: cpuinfo)
    assert describe_environment(torch.device("cpu"))["cpu"] == expected


def test_a_mac_has_the_name_of_its_chip(monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout="Apple M1 Pro\n")
    monkeypatch.setattr(environment.Path, "is_file", lambda _: False)
    monkeypatch.setattr(environment.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: done)
    assert describe_environment(torch.device("cpu"))["cpu"] == "Apple M1 Pro"
