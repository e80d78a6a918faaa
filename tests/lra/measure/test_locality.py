"""How far models mix: exact where it is known exactly."""

import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.measure.locality import influence, mixing
from lra.models.transformer import build_model
from lra.tasks import info_of

LENGTH = 64


def model_of(variant, **overrides):
    config = resolve(
        task="needle", variant=variant, profile=load_profile("probes"), seed=0, track="open", overrides=overrides
    )
    info = info_of(config)
    return build_model(config, info.vocab_size, info.num_classes).eval()


def touched(variant, place, **overrides):
    tokens = torch.randint(1, 18, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    found = influence(model_of(variant, **overrides), tokens, None, place, 2, torch.Generator().manual_seed(0))
    return found.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("kernel", "layers"), [(3, 2), (7, 1), (9, 3)])
def test_a_convolution_mixes_exactly_half_its_kernel_per_layer(kernel, layers):
    half = layers * (kernel // 2)
    found = touched("conv", 31, **{"variant.kernel_size": kernel, "model.num_layers": layers})
    assert found == list(range(31 - half, 31 + half + 1))


def test_mlp_only_mixes_nothing_and_full_attention_everything():
    assert touched("mlp_only", 31) == [31]
    assert touched("full", 31) == list(range(LENGTH))


def test_local_attention_stays_in_its_blocks():
    found = touched("local", 31, **{"variant.window": 16, "model.num_layers": 1})
    assert found == list(range(16, 32))


def test_influences_are_those_of_the_whole_jacobian():
    model = model_of("conv")
    tokens = torch.randint(1, 18, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    x = model.embedding(tokens, None)[0].detach()

    def state(x):
        for block in model.blocks:
            x = block(x, None)
        return x[0, 31]

    exact = torch.autograd.functional.jacobian(state, x)[:, 0].square().sum(dim=(0, 2))  # (dim, length, dim)
    estimate = influence(model, tokens, None, 31, 400, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate, exact, rtol=0.3, atol=1e-6)
    assert estimate.sum() == pytest.approx(float(exact.sum()), rel=0.1)


def test_a_summary_weighs_distances():
    found = mixing(torch.tensor([0, 1, 2, 10, 20]), torch.tensor([1.0, 1.0, 1.0, 7.0, 0.0]))
    assert (found.mean, found.median, found.most, found.farthest, found.reach) == (7.3, 10, 10, 10, 20)
