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


def test_the_load_and_the_version_of_this_project_decide_nothing():
    assert decisive(HERE | {"load_average": 9.0, "lra_harness": "9.9"}) == decisive(HERE)
