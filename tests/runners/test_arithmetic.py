"""float32 means float32, and sums have a fixed order on request."""

import pytest
import torch

from lra.measure.environment import _of_cuda
from runners.arithmetic import refused_operator, set_arithmetic


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    torch.use_deterministic_algorithms(mode=False)
    set_arithmetic()


def test_no_float32_is_rounded_to_tf32():
    torch.backends.cudnn.allow_tf32 = True  # the default of torch
    assert _of_cuda()["tf32"] == "convolutions"
    set_arithmetic()
    assert _of_cuda()["tf32"] == "off"
    torch.backends.cuda.matmul.allow_tf32 = True
    assert _of_cuda()["tf32"] == "products"


def test_an_operator_in_no_fixed_order_is_refused_on_request_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    x, index = torch.zeros(2), torch.tensor([0, 0])
    set_arithmetic()
    x.put_(index, torch.ones(2))
    set_arithmetic(deterministic=True)
    with pytest.raises(RuntimeError) as caught:
        x.put_(index, torch.ones(2))
    assert refused_operator(caught.value) == "put_"
    assert refused_operator(RuntimeError("of another kind")) is None
    torch.use_deterministic_algorithms(mode=False)
    assert refused_operator(caught.value) is None
