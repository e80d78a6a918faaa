"""How far models mix: exact where it is known exactly."""

import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.measure.locality import influence, logits_within, mixing
from lra.models.transformer import build_model
from lra.seeding import numpy_generator
from lra.tasks import info_of
from lra.tasks.probes.needle import Needle

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
    assert found.within == pytest.approx([0.1, 0.2, 0.3, *[0.3] * 7, *[1.0] * 11])


def drawn(vocabulary=18):
    return torch.randint(1, vocabulary, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def within(model, tokens, mask, radius, change):
    with torch.no_grad():
        return logits_within(model, tokens, mask, radius, change, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("change", ["hide", "shuffle"])
@pytest.mark.parametrize("pooling", ["first", "masked_mean", "padded_mean"])
@pytest.mark.parametrize("padded", [False, True])
def test_an_answer_needs_just_what_the_layers_reach(change, pooling, padded):
    """Two convolutions of 3 tokens reach 2: the answer within a radius of 2 is the whole one, within 1 it is not."""
    model = model_of("conv", **{"variant.kernel_size": 3, "model.pooling": pooling}).double()
    mask = torch.arange(LENGTH)[None] < 50 if padded else None
    with torch.no_grad():
        whole = model(drawn(), mask)
    torch.testing.assert_close(within(model, drawn(), mask, 2, change), whole)
    assert (within(model, drawn(), mask, 1, change) - whole).abs().max() > 1e-6


def test_a_cls_token_has_the_view_of_the_first_token():
    model = model_of("full", **{"model.pooling": "cls"})
    with torch.no_grad():
        for radius in (0, 5, LENGTH):
            alone = model(drawn()[:, : radius + 1])
            torch.testing.assert_close(within(model, drawn(), None, radius, "hide"), alone)


def test_nothing_but_the_token_itself_is_needed_without_mixing():
    model = model_of("mlp_only", **{"model.pooling": "masked_mean"})
    with torch.no_grad():
        torch.testing.assert_close(within(model, drawn(), None, 0, "hide"), model(drawn()))


def test_far_tokens_that_are_hidden_say_nothing_and_shuffled_ones_do():
    """Two needles that differ beyond the certified distance alone: their answers within it are equal."""
    probe, model = Needle(), model_of("full")
    options = probe.options.model_validate({"length": LENGTH})
    generator = numpy_generator(0, "test")
    tokens, label = probe.example(options, LENGTH, generator)
    other = probe.other_answer(options, tokens.copy(), (label + 1) % 4, generator)
    pair = [torch.from_numpy(each.astype("uint8"))[None] for each in (tokens, other)]
    near = probe.certified_distance(options, LENGTH) - 1
    hidden = [within(model, each, None, near, "hide") for each in pair]
    assert torch.equal(*hidden)
    assert not torch.equal(*(within(model, each, None, LENGTH, "hide") for each in pair))
    assert not torch.equal(*(within(model, each, None, near, "shuffle") for each in pair))
