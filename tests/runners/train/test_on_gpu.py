"""Every variant and a stopped run on a CUDA device, against what they give on the CPU.

Skipped with a reason where there is none. `tests/pretended_cuda` tries the same code without one.
"""

import pytest
import torch

from attention_zoo import available
from runners.arithmetic import set_arithmetic
from tests.pretended_cuda.cases import NOISY, FixedBatches, chosen, configured, settings, steps, whole_and_resumed
from tests.pretended_cuda.test_pretended_cuda import TOLERANCE

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def true_float32():
    set_arithmetic()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", sorted(available()))
def test_a_variant_trains_as_on_the_cpu(variant, precision):
    for _, options in chosen(variant):
        config = configured("listops", variant, **options, **settings(precision, 0.0, 96))
        batches = FixedBatches(config, 3, 96)
        expected, actual = (steps(config, batches, torch.device(name))["logits"] for name in ("cpu", "cuda"))
        assert all(logits.isfinite().all() for logits in actual)
        if variant not in NOISY:
            first, there = expected[0], actual[0].cpu()
            assert (there - first).norm() <= TOLERANCE[precision] * first.norm(), options


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on(tmp_path, precision):
    whole, resumed = whole_and_resumed(tmp_path, precision, torch.device("cuda"))
    assert resumed.cost.resumed == 1
    assert resumed.run_id == whole.run_id
    assert resumed.outcome.test.total == whole.outcome.test.total
    assert whole.environment["device"] == torch.cuda.get_device_name()
