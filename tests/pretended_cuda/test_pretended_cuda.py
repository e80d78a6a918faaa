"""What would fail, wait or crawl on a CUDA device, found without one: see `tests.pretended_cuda.device`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attention_zoo import available

ROOT = Path(__file__).parents[2]
NEEDED = shutil.which("g++") is not None and sys.platform.startswith("linux")
pytestmark = pytest.mark.skipif(not NEEDED, reason="the pretended device needs g++ on Linux")

MOST_LAUNCHES = 1_000
SCANS = {"hgrn": 1_500, "lru": 1_500, "s5": 1_500, "mamba": 11_000}
"""Most launches of variants that go from token to token: known, and too many."""
NO_DETERMINISTIC_ALGORITHM = {"cumsum", "cumsum_", "put_", "kthvalue", "histc", "grid_sampler_2d_backward"}
"""Operators that torch.use_deterministic_algorithms refuses on CUDA, by its own list; cumsum of reals only."""
NOT_DETERMINISTIC = {"gated_delta", "gated_linear", "lion"}
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}
TABLE = json.loads((Path(__file__).parent / "launches.json").read_text())
"""Launches of one training step, as measured: `python -m tests.pretended_cuda`."""
GROUPS = 3


def of_group(number: int) -> list[str]:
    return sorted(available())[number::GROUPS]


def run(kind: str, variants: list[str] | None = None) -> list[dict]:
    """Run cases in a process of its own, which the pretended device changes for good."""
    command = [sys.executable, "-m", "tests.pretended_cuda.cases", kind, *(variants or ())]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if "pretended-cuda" in said and "g++" in said:
        pytest.skip(f"the guard does not compile with torch {torch.__version__}")
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(lines: list[dict]) -> None:
    """Refuse errors, tensors on the CPU, waits, unpinned copies, and attention that is not fused."""
    assert [line for line in lines if "raised" in line] == []
    assert [(line["case"], line["on the CPU"]) for line in lines if line.get("on the CPU")] == []
    events = [(line["case"], event) for line in lines for event in line.get("events", ())]
    assert [each for each in events if each[1]["kind"] != "unordered"] == []


def check_launches(kind: str, lines: list[dict]) -> None:
    counts = {line["case"]: line["launches"] for line in lines}
    assert {case: n for case, n in counts.items() if n > 1.05 * TABLE[kind].get(case, 0)} == {}, (
        "more than in the table"
    )


def check_deterministic(lines: list[dict], variants: list[str]) -> None:
    """Compare which variants need an operator without a deterministic algorithm with those that the docs name."""
    needing = {
        line["case"].split()[0]
        for line in lines
        for event in line["events"]
        if event["kind"] == "unordered" and event["operator"] in NO_DETERMINISTIC_ALGORITHM
    }
    assert needing == NOT_DETERMINISTIC & set(variants)
    page = (ROOT / "docs" / "protocol.md").read_text()
    assert all(f"`{variant}`" in page for variant in needing)


def check_results(lines: list[dict]) -> None:
    """Compare the first step's logits with those of the CPU."""
    errors = [(line["case"], line["error"]) for line in lines if "error" in line]
    assert errors
    assert [each for each in errors if not each[1] <= TOLERANCE[each[0].split()[-1]]] == []


@pytest.mark.nightly  # as all variants; this one is for seeded mistakes
def test_two_variants_train_without_a_fault():
    lines = run("small", ["full", "adaptive_span"])
    assert len(lines) == 9
    check(lines)
    check_launches("small", lines)
    check_results(lines)


def test_no_step_of_the_table_has_many_launches():
    over = {case: count for case, count in TABLE["large"].items() if count > SCANS.get(case, MOST_LAUNCHES)}
    assert over == {}
    check_launches("large", [{"case": "full", "launches": TABLE["large"]["full"]}])
    with pytest.raises(AssertionError, match="more than in the table"):
        check_launches("large", [{"case": "full", "launches": 1.1 * TABLE["large"]["full"]}])


def test_the_launches_are_those_that_a_gpu_counted():
    """Within a third, but for one that the profile gives another kernel. No operator of the project is one launch."""
    record = json.loads((ROOT / "benchmarks" / "evidence" / "gpu.json").read_text())["parts"]
    counted = {name: record[f"step float32 {name}"]["figures"]["launches"] for name in available()}
    estimated = {case.split()[0]: count for case, count in reversed(TABLE["large"].items())}
    ratios = {name: count / estimated[name] for name, count in counted.items()}
    assert {name for name, ratio in ratios.items() if not 2 / 3 <= ratio <= 4 / 3} == {"performer"}


def test_each_planted_fault_is_found():
    lines = run("planted")
    assert len(lines) > 10
    assert [line for line in lines if line["kinds"] != [line["found_by"]] * bool(line["found_by"])] == []
    assert all("planted.py" not in where or line["found_by"] for line in lines for where in line["where"])


@pytest.mark.nightly
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_variant_trains_without_a_fault(group):
    lines = run("small", of_group(group))
    check(lines)
    check_launches("small", lines)
    check_results(lines)


@pytest.mark.nightly
@pytest.mark.parametrize("group", range(GROUPS))
def test_a_step_at_length_needs_few_launches(group):
    lines = run("large", of_group(group))
    check(lines)
    check_deterministic(lines, of_group(group))
    check_launches("large", lines)


@pytest.mark.nightly
def test_models_of_every_profile_train_and_a_stopped_run_goes_on():
    lines = run("models")
    check(lines)
    resumed = [line for line in lines if "resumed" in line]
    assert [(line["resumed"], line["same"], line["mixed"]) for line in resumed] == [(1, True, [])] * 2
