"""What of an environment decides the last bits of a result."""

import pytest
import torch

from lra.measure.environment import decisive, describe_environment, differences

HERE = describe_environment(torch.device("cpu")) | {"processes": 1}


@pytest.mark.parametrize(
    "name", ["torch", "numpy", "device", "processes", "float32_matmul_precision", "cpu", "cpu_capability", "threads"]
)
def test_another_value_of_what_decides_is_told(name):
    assert differences(decisive(HERE | {name: "another"}), decisive(HERE)).startswith(f"{name} another there, ")


@pytest.mark.parametrize("name", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA"])
def test_settings_of_the_libraries_below_torch_decide_in_both_directions(name, monkeypatch):
    before = decisive(HERE)
    monkeypatch.setenv(name, "another")
    now = decisive(describe_environment(torch.device("cpu")) | {"processes": 1})
    assert differences(before, now) == f"library_settings unknown there, {name}=another here"
    assert differences(now, before) == f"library_settings {name}=another there, unknown here"
    assert "library_settings" not in before  # older checkpoints are of an environment without any


def test_the_load_and_the_version_of_this_project_decide_nothing():
    assert decisive(HERE | {"load_average": 9.0, "lra_harness": "9.9"}) == decisive(HERE)
