"""ALiBi and T5's biases against scores written out pair by pair, in full attention and in blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer, get_variant
from attention_zoo.functional import attention
from attention_zoo.kernels import blockwise
from attention_zoo.kernels.blockwise import by_pair, by_place
from attention_zoo.kernels.softmax import attend
from attention_zoo.position_bias import t5_bucket
from tests.attention_zoo.variants.helpers import (
    BOTH,
    assert_keeps_the_contract,
    assert_same,
    inputs,
    make,
    pairs,
    perturb,
)

KINDS = pytest.mark.parametrize("kind", ["alibi", "t5"])


def bucket(distance: int, *, causal: bool) -> int:
    """Return the bucket of one distance, as the paper's code counts it."""
    side = 32 if causal else 16
    apart = max(0, -distance) if causal else abs(distance)
    single = side // 2
    if apart >= single:
        apart = min(side - 1, single + int(math.log(apart / single) / math.log(128 / single) * (side - single)))
    return apart + (side if distance > 0 and not causal else 0)


def biases(mixer: SequenceMixer, length: int) -> Tensor:
    """Write out the bias of each head and pair, (num_heads, length, length)."""
    rows = []
    for head in range(2):
        for i in range(length):
            for j in range(length):
                if mixer.config.bias == "alibi":
                    rows.append(torch.tensor(-(2.0 ** (-4.0 * (head + 1))) * abs(j - i), dtype=torch.float64))
                else:
                    rows.append(mixer.bias.table[head, bucket(j - i, causal=mixer.dims.causal)])
    return torch.stack(rows).view(2, length, length)


def dense(mixer: SequenceMixer, x: Tensor, mask: Tensor | None, allowed: Tensor) -> Tensor:
    q, k, v = mixer.projections.split(x)
    allowed = allowed if mask is None else allowed & mask[:, None, None, :]
    heads = attention(q, k, v, allowed, causal=mixer.dims.causal, bias=biases(mixer, x.shape[1]))
    return mixer.projections.merge(heads, mask)


@KINDS
@BOTH
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_full_attention_equals_the_scores_with_their_biases_in_outputs_and_gradients(
    kind, causal, backend, monkeypatch
):
    monkeypatch.setattr(blockwise, "_QUERIES", 8)
    for length in (1, 23):
        mixer = make("full", length=length, causal=causal, bias=kind, backend=backend)
        perturb(mixer)
        everything = torch.ones(1, 1, length, length, dtype=torch.bool)
        x, mask = inputs(length)
        for used in (None, mask):
            gradients = assert_same(
                mixer,
                lambda mixer, x, mask, allowed=everything: dense(mixer, x, mask, allowed),
                x,
                used,
                tolerance=1e-9,
            )
        assert ("bias.table" in gradients) == (kind == "t5")


@KINDS
@pytest.mark.parametrize(
    "options", [{}, {"look_around": 1}, {"look_around": 9}, {"layout": "strided"}, {"rotary": True}], ids=str
)
def test_local_attention_equals_the_scores_with_their_biases_in_outputs_and_gradients(kind, options):
    length, window = 23, 5
    blocks = -(-length // window)
    mixer = make("local", length=length, window=window, bias=kind, **options)
    perturb(mixer)

    def sees(i: int, j: int) -> bool:
        if mixer.config.layout == "strided":
            return i % blocks == j % blocks
        return abs(i // window - j // window) <= mixer.config.look_around

    x, mask = inputs(length)
    for used in (None, mask):
        assert_same(
            mixer,
            lambda mixer, x, mask: dense(mixer, x, mask, pairs(length, sees)[None, None]),
            x,
            used,
            tolerance=1e-9,
        )


@BOTH
def test_t5_buckets_are_those_of_the_paper(causal):
    distance = torch.arange(-300, 301)
    expected = [bucket(int(each), causal=causal) for each in distance]
    assert t5_bucket(distance, causal=causal).tolist() == expected
    assert set(expected) == (set(range(32)) if causal else set(range(32)) - {16})  # nobody is 0 places later


def test_the_sum_by_place_is_the_transpose_of_the_bias_by_pair():
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(2, 4 + 7 - 1, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(2, 4, 7, dtype=torch.float64, generator=generator)
    written = torch.stack([torch.stack([bias[:, j - i + 3] for j in range(7)], -1) for i in range(4)], 1)
    torch.testing.assert_close(by_pair(bias, 4), written)
    torch.testing.assert_close(by_place(weight), torch.autograd.grad((written * weight).sum(), bias)[0])


def test_a_bias_of_the_other_sign_of_distance_is_told_apart(monkeypatch):
    """The broken twin: T5's table tells left from right."""
    mixer = make("full", length=23, bias="t5")
    everything = torch.ones(1, 1, 23, 23, dtype=torch.bool)
    x, mask = inputs(23)
    monkeypatch.setattr(blockwise, "by_pair", lambda bias, queries: by_pair(bias.flip(1), queries))
    with pytest.raises(AssertionError):
        assert_same(mixer, lambda mixer, x, mask: dense(mixer, x, mask, everything), x, mask, tolerance=1e-9)


def test_with_dropout_the_bias_has_a_gradient_of_the_same_weights():
    """A bias in the scores acts as one more feature would."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 9, 4, dtype=torch.float64)
    bias = torch.randn(2, 17, dtype=torch.float64, requires_grad=True)
    seed = int(torch.Generator().manual_seed(7).initial_seed())
    torch.manual_seed(seed)
    out = attend(q, k, v, dropout=0.4, training=True, bias=bias)
    torch.manual_seed(seed)
    drawn = int(torch.randint(2**63 - 1, ()).item())
    factor = blockwise.dropout_factor(q, k, dropout=0.4, seed=drawn)
    expected = attention(q, k, v, weight_factor=factor, bias=by_pair(bias, 9))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sin().sum(), bias)[0] for each in (out, expected)))


@pytest.mark.parametrize(("name", "kind"), [("full", "t5"), ("local", "alibi")])
def test_biased_variants_keep_the_contract(name, kind):
    without = {"permutation"} if name == "full" else {"exact_limit"}
    assert_keeps_the_contract(name, {"bias": kind}, without=without)


def test_the_fused_kernel_is_refused():
    with pytest.raises(ValueError, match="fused kernel takes no bias"):
        get_variant("full").config.from_dict({"bias": "alibi", "backend": "fused"})
