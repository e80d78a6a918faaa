"""The decay that each token decides: its formula is compared in the tests of the variants that have it."""

import torch
from torch.nn.functional import softplus

from attention_zoo.selective_decay import SelectiveDecay


def test_decays_start_as_those_of_mamba_2():
    torch.manual_seed(0)
    decay = SelectiveDecay(64, 64)
    steps, rates = softplus(decay.step.bias), decay.log_rate.exp()
    assert 1e-3 <= steps.min() < 2e-3 < 5e-2 < steps.max() <= 1e-1
    assert 1.0 <= rates.min() < 3.0 < 14.0 < rates.max() <= 16.0
    assert decay(torch.randn(2, 5, 64)).max() < 0.0
