"""HGRN and RG-LRU against their recurrences, stepped one token at a time from each end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import LayerDims, get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants import hgrn
from attention_zoo.variants.hgrn import HGRN
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    assert_same,
    inputs,
    make,
    perturb,
    share_of_full_attention,
)

KINDS = pytest.mark.parametrize("kind", ["hgrn", "rg_lru"])


def stepped(factor: Tensor, added: Tensor, mask: Tensor | None, *, backwards: bool) -> Tensor:
    """Run (batch, length, states) token by token; a masked token changes nothing."""
    state, states = torch.zeros_like(added[:, 0]), {}
    places = range(added.shape[1])
    for place in reversed(places) if backwards else places:
        after = factor[:, place] * state + added[:, place]
        state = after if mask is None else torch.where(mask[:, place, None], after, state)
        states[place] = state
    return torch.stack([states[place] for place in places], dim=1)


def naive_hgrn(mixer: HGRN, x: Tensor, mask: Tensor | None) -> Tensor:
    cell = mixer.cell
    bound = cell.bound.sigmoid() if mixer.dims.layer else 0.0
    kept = bound + (1.0 - bound) * cell.forget_gate(x).sigmoid()
    real, imaginary = F.silu(cell.value(x)).chunk(2, dim=-1)
    added = (1.0 - kept) * (real + 1j * imaginary)
    states = sum(
        stepped(kept * torch.exp(1j * angle), added, mask, backwards=direction == 1)
        for direction, angle in enumerate(cell.angle)
    )
    both = torch.cat((states.real, states.imag), dim=-1)
    centred = both - both.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * cell.norm.weight + cell.norm.bias
    return zero_masked(mixer.out(F.silu(cell.output_gate(x)) * normed), mask)


def naive_rg_lru(mixer: HGRN, x: Tensor, mask: Tensor | None) -> Tensor:
    cell, length = mixer.cell, x.shape[1]
    values = zero_masked(cell.value(x), mask)
    first = -3 if mixer.dims.causal else -2
    u = cell.convolution.bias.expand_as(values).clone()
    for tap in range(4):
        moved = torch.zeros_like(values)
        for place in range(length):
            if 0 <= place + first + tap < length:
                moved[:, place] = values[:, place + first + tap]
        u = u + cell.convolution.weight[:, 0, tap] * moved
    gates = []
    for head, part in enumerate(u.chunk(2, dim=-1)):
        gates.append((part @ cell.gates[head] + cell.gate_bias[head]).sigmoid().chunk(2, dim=-1))
    gate, forget = (torch.cat(each, dim=-1) for each in zip(*gates, strict=True))
    factor = torch.exp(-8.0 * torch.log1p(cell.rate.exp()) * forget)
    added = (1.0 - factor**2).sqrt() * gate * u
    states = stepped(factor, added, mask, backwards=False)
    if not mixer.dims.causal:
        states = states + stepped(factor, added, mask, backwards=True)
    return zero_masked(mixer.out(F.gelu(cell.output_gate(x)) * states), mask)


NAIVE = {"hgrn": naive_hgrn, "rg_lru": naive_rg_lru}


@BOTH
@KINDS
@pytest.mark.parametrize("options", [{}, {"state_size": 6}], ids=str)
def test_equals_its_recurrence_in_outputs_and_gradients(kind, options, causal):
    assert_equals_definition("hgrn", NAIVE[kind], length=LENGTH, causal=causal, kind=kind, **options)


@BOTH
@KINDS
@pytest.mark.parametrize("length", [1, 2, 4])
def test_short_sequences(kind, causal, length):
    mixer = make("hgrn", length=LENGTH, kind=kind, causal=causal)
    perturb(mixer)
    x, mask = inputs(length)
    mask[0, 0] = True
    for used in (None, mask):
        assert_same(mixer, NAIVE[kind], x, used, tolerance=1e-9)


@pytest.mark.parametrize("layer", [1, 3])
def test_upper_layers_have_a_bound(layer):
    torch.manual_seed(0)
    spec = get_variant("hgrn")
    mixer = spec.build(spec.config(), LayerDims(dim=12, num_heads=2, max_length=LENGTH, layer=layer)).double()
    torch.testing.assert_close(mixer.cell.bound.sigmoid(), torch.full((6,), layer / (layer + 1)).double())
    perturb(mixer)
    x, mask = inputs(LENGTH, dim=12)
    assert assert_same(mixer, naive_hgrn, x, mask, tolerance=1e-9)["cell.bound"].any()


@KINDS
def test_masked_tokens_that_fade_the_states_are_told_apart(kind, monkeypatch):
    """The broken twin: the factors of masked tokens are left as they are."""
    monkeypatch.setattr(hgrn, "_one_where_masked", lambda factor, mask: factor)
    with pytest.raises(AssertionError):
        assert_equals_definition("hgrn", NAIVE[kind], length=LENGTH, causal=True, kind=kind)


def test_masked_tokens_are_as_if_they_were_not_there():
    mixer = make("hgrn", length=LENGTH)
    x, mask = inputs(LENGTH)
    for row in (0, 1):
        alone = mixer(x[row : row + 1, mask[row]])
        torch.testing.assert_close(mixer(x, mask)[row, mask[row]], alone[0])


@KINDS
def test_gates_at_their_ends_keep_gradients_finite(kind):
    for shift in (-1e4, 1e4):
        mixer = make("hgrn", length=LENGTH, kind=kind).float()
        with torch.no_grad():
            (mixer.cell.forget_gate.bias if kind == "hgrn" else mixer.cell.gate_bias).add_(shift)
        x = inputs(LENGTH)[0].float().requires_grad_()
        out = mixer(x)
        gradients = torch.autograd.grad(out.square().sum(), (x, *mixer.parameters()))
        assert out.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_rates_of_rg_lru_start_between_09_and_0999():
    spec = get_variant("hgrn")
    dims = LayerDims(dim=64, num_heads=2, max_length=8)
    torch.manual_seed(0)
    mixer = spec.build(spec.config.from_dict({"kind": "rg_lru", "state_size": 2000}), dims)
    kept = torch.exp(-8.0 * F.softplus(mixer.cell.rate))
    assert 0.9 <= kept.min() < 0.901
    assert 0.998 < kept.max() <= 0.999
    assert kept.mean().item() == pytest.approx(0.9495, abs=0.003)


@pytest.mark.nightly
def test_rg_lru_keeps_the_contract():
    assert_keeps_the_contract("hgrn", {"kind": "rg_lru"})


def test_weights_beside_those_of_full_attention():
    assert 0.99 < share_of_full_attention("hgrn") < 1.02
    counts = {}
    spec = get_variant("hgrn")
    for kind in NAIVE:
        mixer = spec.build(spec.config(kind=kind), LayerDims(dim=512, num_heads=8, max_length=8, qkv_bias=False))
        counts[kind] = sum(parameter.numel() for parameter in mixer.parameters()) / (4 * 512 * 512)
    assert all(0.99 < share < 1.02 for share in counts.values())


@pytest.mark.parametrize("options", [{"state_size": -1}, {"state_size": 3, "kind": "rg_lru"}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match="state_size"):
        make("hgrn", length=8, **options)
