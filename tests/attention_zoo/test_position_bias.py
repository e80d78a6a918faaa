"""ALiBi and T5's biases against scores written out pair by pair, in full attention and in blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer, get_variant
from attention_zoo.functional import attention
from attention_zoo.kernels import adaptive_span, block_sparse, blockwise
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


@pytest.mark.parametrize(
    ("name", "kind"), [("full", "t5"), ("local", "alibi"), ("bigbird", "t5"), ("adaptive_span", "t5")]
)
@pytest.mark.nightly
def test_biased_variants_keep_the_contract(name, kind):
    without = {"permutation"} if name == "full" else {"exact_limit"}
    assert_keeps_the_contract(name, {"bias": kind}, without=without)


def test_the_fused_kernel_is_refused():
    with pytest.raises(ValueError, match="fused kernel takes no bias"):
        get_variant("full").config.from_dict({"bias": "alibi", "backend": "fused"})


BLOCK_SPARSE = [
    ("longformer", {"window": 6}),
    ("longformer", {"window": 6, "num_global": 2}),
    ("bigbird", {"block_size": 3, "num_random": 1}),
    ("sparse", {"stride": 5, "num_summary": 2}),
    ("sparse", {"stride": 5, "num_summary": 1, "pattern": "strided"}),
]


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        pytest.param(name, options, kind, marks=pytest.mark.nightly if number % 2 == (kind == "t5") else ())
        for number, (name, options) in enumerate(BLOCK_SPARSE)
        for kind in ("alibi", "t5")
    ],
    ids=str,
)
def test_block_sparse_variants_equal_the_scores_with_their_biases_in_outputs_and_gradients(
    name, options, kind, monkeypatch
):
    """The pattern is that of the same weights without a bias: who moves the output of whom."""
    monkeypatch.setattr(block_sparse, "_NUMBERS_CPU", 500)  # several parts
    length = 23
    torch.manual_seed(1)
    x, mask = torch.randn(3, length, 16, dtype=torch.float64), torch.rand(3, length) > 0.3
    mask[:, -1] = True  # the last block of the bigbird is that of the padded length
    mask[2] = False
    mixer = make(name, length=length, bias=kind, **options)
    perturb(mixer)
    plain = make(name, length=length, **options)
    plain.load_state_dict({key: value for key, value in mixer.state_dict().items() if not key.startswith("bias.")})
    one = x[:1].clone()
    moved = torch.autograd.functional.jacobian(lambda x: plain(x)[0].sum(-1), one)[:, 0].abs().sum(-1) > 0
    allowed = moved[None, None]
    assert 0.2 < allowed.double().mean() < 0.95
    for used in (None, mask):
        gradients = assert_same(mixer, lambda mixer, x, mask: dense(mixer, x, mask, allowed), x, used, tolerance=1e-9)
    assert ("bias.table" in gradients) == (kind == "t5")


@KINDS
def test_contextpool_hands_the_bias_to_its_base(kind):
    mixer = make("contextpool", length=23, bias=kind)
    perturb(mixer)
    assert mixer.base.config.bias == kind
    x, mask = inputs(23)

    def naive(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
        everything = torch.ones(1, 1, 23, 23, dtype=torch.bool)
        return dense(mixer.base, mixer.front(x, mask), mask, everything)

    assert_same(mixer, naive, x, mask, tolerance=1e-9)


def test_contextpool_knows_one_form_of_a_bias_and_refuses_it_where_the_base_has_none():
    config = get_variant("contextpool").config
    assert config.from_dict({"base_options": {"bias": "t5"}}) == config.from_dict({"bias": "t5"})
    assert config.from_dict({"base": "gau"}).bias == "none"
    with pytest.raises(ValueError, match="bias: gau takes no position bias"):
        config.from_dict({"base": "gau", "bias": "t5"})


def test_a_sparse_bias_by_another_distance_is_told_apart(monkeypatch):
    """The broken twin: each block of keys counted from its own beginning."""
    places = block_sparse._places
    monkeypatch.setattr(block_sparse, "_places", lambda blocks, size: places(torch.zeros_like(blocks), size))
    with pytest.raises(AssertionError):
        test_block_sparse_variants_equal_the_scores_with_their_biases_in_outputs_and_gradients(
            "longformer", {"window": 6}, "t5", monkeypatch
        )


def test_the_pattern_of_long_range_arena_takes_no_bias():
    with pytest.raises(ValueError, match="bias: pattern lra takes none"):
        get_variant("sparse").config.from_dict({"pattern": "lra", "bias": "alibi"})


@KINDS
@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize(
    ("span", "prefix"), [("static", 0), ("static", 2), ("dynamic", 0)], ids=["static", "prefix", "dynamic"]
)
def test_adaptive_spans_equal_the_scores_with_their_biases_in_outputs_and_gradients(
    kind, causal, span, prefix, monkeypatch
):
    monkeypatch.setitem(adaptive_span._QUERIES, "cpu", 8)
    length, ramp = 23, 4
    options = {"bias": kind, "span": span, "ramp": ramp, "initial_span": 0.2}
    mixer = make("adaptive_span", length=length, causal=causal, num_prefix=prefix, **options)
    perturb(mixer)
    mixer.after_step()
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    distance[:prefix], distance[:, :prefix] = 0, 0

    def naive(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = mixer.projections.split(x)
        m = ((ramp + mixer.span(x, mask)[..., None] - distance) / ramp).clamp(0.0, 1.0)
        allowed = (m > 0.0) & (True if mask is None else mask[:, None, None])
        bias = biases(mixer, length)
        if prefix:
            bias = torch.where(distance == 0, bias[:, :1, :1], bias)
        heads = attention(q, k, v, allowed, causal=causal, bias=bias + m.clamp_min(1e-300).log())
        return mixer.projections.merge(heads, mask)

    x, mask = inputs(length)
    for used in (None, mask):
        gradients = assert_same(mixer, naive, x, used, tolerance=1e-9)
    assert ("bias.table" in gradients) == (kind == "t5")


@KINDS
def test_both_maps_of_differential_attention_have_the_bias(kind):
    length = 23
    mixer = make("differential", length=length, bias=kind)
    perturb(mixer)

    def naive(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = mixer.projections.split(x)
        (q1, q2), (k1, k2) = (each.chunk(2, dim=-1) for each in (q, k))
        first, second = (attention(*each, v, mask, bias=biases(mixer, length)) for each in ((q1, k1), (q2, k2)))
        return mixer.projections.merge((1 - mixer.first_share) * mixer.norm(first - mixer.share() * second), mask)

    x, mask = inputs(length)
    assert_same(mixer, naive, x, mask, tolerance=1e-9)
