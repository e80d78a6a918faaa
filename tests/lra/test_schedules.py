import math

import pytest
import torch

from lra.schedules import learning_rate


def test_rsqrt_has_the_peak_and_the_end_of_the_official_listops_run():
    rates = [learning_rate("rsqrt", 0.05, step, 5000, 1000) for step in range(5000)]
    assert max(rates) == pytest.approx(1.58e-3, rel=2e-3)  # lra-spec: 0.05 / sqrt(1000)
    assert rates.index(max(rates)) == 1000
    assert rates[-1] == pytest.approx(7.1e-4, rel=5e-3)
    assert rates[0] == 0.0


def test_one_cycle_is_torchs_linear_one_cycle():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-4, total_steps=500, pct_start=100 / 500, anneal_strategy="linear"
    )
    differences = []
    for step in range(500):
        # torch puts the peak at the end of step pct_start * total - 1, we put it at step `warmup`
        ours = learning_rate("one_cycle", 1e-4, step, 499, 99)
        differences.append(abs(ours - optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step < 499:
            theirs.step()
    assert max(differences) < 1e-12


def test_cosine_and_constant():
    assert learning_rate("cosine", 2.0, 50, 1050, 50) == 2.0
    assert learning_rate("cosine", 2.0, 550, 1050, 50) == pytest.approx(1.0)
    assert learning_rate("cosine", 2.0, 1050, 1050, 50) == pytest.approx(0.0)
    assert learning_rate("constant", 3.0, 5, 100, 10) == 1.5
    assert learning_rate("constant", 3.0, 0, 100, 0) == 3.0
    assert learning_rate("rsqrt", 1.0, 0, 10, 0) == 1.0
    assert not math.isnan(learning_rate("cosine", 1.0, 10, 10, 10))
