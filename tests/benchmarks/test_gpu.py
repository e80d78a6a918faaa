"""The command that measures on a GPU: its whole path on the pretended device, its record and its tables."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from tests.pretended_cuda.test_pretended_cuda import NEEDED

NVIDIA = {"device": "NVIDIA H100", "driver": "570.1", "cuda": "13.0", "cudnn": 92000, "torch": "2.13.0"}
STEP = {"seconds": 0.03, "kernel_seconds": 0.02, "launches": 1200, "bytes": 2**30}
POOLING = {"paper": {"ms": 3.0, "MiB": 10.0, "attention_ms": 12.0, "attention_MiB": 5.0, "ratio": 0.25}}


def made_up(**parts):
    return {"environment": NVIDIA, "parts": parts}


def on_the_pretended_device(path, *options):
    command = [sys.executable, "-m", "tests.pretended_cuda.measured", str(path), *options]
    done = subprocess.run(
        command, cwd=gpu.ROOT, env=os.environ | {"PYTHONPATH": str(gpu.ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(path.read_text())


def check_trial(printed, record, variants, precisions):
    """Refuse parts that failed or are missing, and a table that claims figures. The Triton kernels need a real GPU."""
    failed = {name for name, part in record["parts"].items() if "figures" not in part}
    assert failed == {f"pooling 24 {form} triton" for form in ("two-sided", "causal")}
    steps = {f"step {precision} {name}" for precision in precisions for name in (gpu.PLAIN, *variants)}
    pooling = {f"pooling 24 {name}" for name in ("two-sided dense", "causal dense", "two-sided pyramid", "causal tree")}
    assert set(record["parts"]) == {"tests"} | steps | pooling | failed
    assert record["parts"]["tests"]["figures"]["skipped"] == 3, "they have no device in a process of their own"
    assert "Pretended GPU" in printed
    assert "No figure is shown." in printed
    rows = [row for row in printed.splitlines() if re.match(r"\| (\w|24)", row) and "/step" not in row]
    assert len(rows) >= len(precisions) * (1 + len(variants)) + 4 + 2
    assert [row for row in rows if re.search(r"\d\.\d", row)] == []


@pytest.mark.nightly
@pytest.mark.skipif(not NEEDED, reason="the pretended device needs g++ on Linux")
def test_the_whole_path_runs_on_the_pretended_device(tmp_path):
    chosen = ["adaptive_span", "contextpool", "mamba"]
    trial = on_the_pretended_device(tmp_path / "gpu.json", ",".join(chosen))
    check_trial(*trial, chosen, ["float32", "bfloat16"])


@pytest.fixture
def three_parts(monkeypatch):
    """Make the device one of three quick parts, of which the second fails."""
    made = []

    def part(name, seconds=1.0):
        def run():
            made.append(name)
            if name == "step float32 full":
                raise RuntimeError("CUDA error: first line\nsecond line")
            return STEP

        return gpu.Part(name, seconds, run)

    parts = [part("step float32 plain loop"), part("step float32 full"), part("step float32 linear", 100.0)]
    monkeypatch.setattr(gpu, "parts", lambda options, device: parts)
    monkeypatch.setattr(gpu, "describe_environment", lambda device: NVIDIA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "set_arithmetic", lambda: None)
    return made


def test_a_part_that_fails_or_does_not_fit_costs_no_other_and_is_named(three_parts, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    gpu.main(["--minutes", "0.5", "--output", str(path)])
    printed = capsys.readouterr().out
    assert three_parts == ["step float32 plain loop", "step float32 full"]
    assert "Left out for lack of time (1; the same command goes on): step float32 linear" in printed
    assert "- step float32 full: RuntimeError: CUDA error: first line" in printed
    assert "second line" not in printed
    gpu.main(["--minutes", "5", "--output", str(path)])
    assert three_parts[2:] == ["step float32 full", "step float32 linear"], "what failed is tried again"
    assert "Left out" not in capsys.readouterr().out


def test_what_was_measured_is_kept_when_the_command_is_cut_off(three_parts, monkeypatch, tmp_path):
    path = tmp_path / "gpu.json"

    def cut_off():
        raise KeyboardInterrupt

    first, *_ = gpu.parts(None, None)
    monkeypatch.setattr(gpu, "parts", lambda *_: [first, gpu.Part("step float32 full", 1.0, cut_off)])
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--output", str(path)])
    assert list(json.loads(path.read_text())["parts"]) == [first.name]


def test_a_record_of_another_device_or_no_record_is_refused(three_parts, tmp_path):
    path = tmp_path / "gpu.json"
    gpu.save(path, {"environment": NVIDIA | {"device": "NVIDIA A100"}, "parts": {}})
    with pytest.raises(
        SystemExit, match=r"measured elsewhere \(device NVIDIA A100 there, NVIDIA H100 here\); name another"
    ):
        gpu.main(["--output", str(path)])
    path.write_text("{")
    with pytest.raises(SystemExit, match="no record of this command"):
        gpu.main(["--output", str(path)])
    assert three_parts == []


def test_without_a_device_one_line_is_printed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert stop.value.code == "benchmarks.gpu: no CUDA device on this machine; `lra-bench` measures on the CPU"


def test_where_the_project_is_not_installed_one_line_says_so(three_parts, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "available", lambda: ["full", "linear"])
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--output", str(tmp_path / "gpu.json")])
    line = "benchmarks.gpu: the project is not installed, so ContextPool is not found; run `pip install -e .` first"
    assert stop.value.code == line
    assert three_parts == []


def test_a_name_that_does_not_exist_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "describe_environment", lambda device: NVIDIA)
    monkeypatch.setattr(gpu, "set_arithmetic", lambda: None)
    with pytest.raises(SystemExit, match=r"^benchmarks.gpu: unknown variant 'fulll'; did you mean 'full'"):
        gpu.main(["--output", str(tmp_path / "gpu.json"), "--attn", "fulll"])


def test_the_tables_show_what_was_measured():
    record = made_up(
        tests={"figures": {"ended": True, "passed": 7, "skipped": 1, "failed": ["tests/a.py::test_b"]}},
        **{
            "step float32 plain loop": {"figures": STEP | {"seconds": 0.02}},
            "step float32 full": {"figures": STEP},
            "pooling 1024 causal tree": {"figures": POOLING},
            "pooling 1024 causal triton": {"error": "RuntimeError: no"},
        },
    )
    shown = gpu.tables(record)
    assert shown.startswith("NVIDIA H100, driver 570.1, torch 2.13.0, cuda 13.0, cudnn 92000\n")
    assert "7 passed, 1 failed, 1 skipped.\n- failed: tests/a.py::test_b" in shown
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in shown.splitlines() if row.startswith("| ")]
    assert ["full", "30.00", "20.00", "1.50", "1,200", "1.50", "1,024"] in rows
    assert ["1024", "causal", "tree", "3.00", "-", "-", "0.25", "-", "-", "10"] in rows
    assert ["1024", "causal", "triton", "failed", "-", "-", "-", "-", "-", "-"] in rows
    assert "No figure is shown" not in shown


def test_the_tests_on_the_device_are_counted(monkeypatch):
    output = (
        "[gw0] [ 1%] PASSED tests/a.py::test_one[x-y] \n[gw1] [ 2%] FAILED tests/a.py::test_two \n"
        "[gw1] [ 3%] SKIPPED tests/b.py::test_three \nFAILED tests/a.py::test_two - AssertionError: 1 - 2\n"
    )
    done = subprocess.CompletedProcess([], 1, output, "")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: done)
    assert gpu.run_tests() == {
        "ended": True,
        "passed": 1,
        "skipped": 1,
        "failed": ["tests/a.py::test_two: AssertionError: 1 - 2"],
    }

    def too_long(*_, timeout, **__):
        raise subprocess.TimeoutExpired([], timeout, output=output.encode())

    monkeypatch.setattr(gpu.subprocess, "run", too_long)
    assert gpu.run_tests()["ended"] is False
    assert gpu.run_tests()["passed"] == 1


@pytest.mark.nightly
def test_the_files_named_are_those_that_have_tests_for_a_device():
    command = [sys.executable, "-m", "pytest", "-n0", "--collect-only", "-m", "gpu and not nightly", "tests"]
    found = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True).stdout
    assert {line.partition("::")[0] for line in found.splitlines() if "::" in line} == set(gpu.TESTS[1:])


@pytest.mark.nightly
def test_a_plugin_of_pytest_that_warns_costs_no_test(monkeypatch, tmp_path):
    (tmp_path / "foreign.py").write_text(
        "import warnings\ndef pytest_configure():\n    warnings.warn('beside xdist')\n"
    )
    info = tmp_path / "foreign-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: foreign\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\nforeign = foreign\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "TESTS", ["-n1", "tests/contextpool/test_on_gpu.py"])
    found = gpu.run_tests()
    assert (found["ended"], found["passed"] + found["skipped"], found["failed"]) == (True, 3, [])
    plain = [sys.executable, "-m", "pytest", "-n0", "--collect-only", gpu.TESTS[1]]
    ended = subprocess.run(plain, cwd=gpu.ROOT, capture_output=True, text=True)
    assert "UserWarning: beside xdist" in ended.stderr, "it is loaded where all plugins are"
    assert ended.returncode not in (0, 1)
