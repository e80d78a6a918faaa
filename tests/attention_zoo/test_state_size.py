"""What a layer keeps: the figures of all variants, and what causal layers really hand on from token to token."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import LayerDims, SequenceMixer, available, get_variant

N, DIM, HEADS, HEAD = 500, 32, 4, 8
DIMS = LayerDims(dim=DIM, num_heads=HEADS, max_length=N)
ALL = 2 * N * DIM
"""Keys and values of all tokens."""
LINEAR = HEADS * HEAD * (HEAD + 1)
"""Keys times values in each head, and the normaliser."""

FIGURES: dict[str, int | None] = {
    "adaptive_span": ALL,
    "bigbird": ALL,
    "block_topk": ALL,
    "contextpool": ALL + N * DIM,
    "contextpool_conv_only": ALL + 2 * (DIM + 16),
    "conv": 4 * DIM,
    "cosformer": 2 * LINEAR,
    "differential": ALL,
    "fnet": None,
    "full": ALL,
    "gated_delta": 2 * HEADS * 4 * 8 + 6 * DIM,
    "gated_linear": 2 * HEADS * 4 * 8,
    "gau": N * (128 + 8),  # values have 8 features at least
    "h_transformer_1d": 2 * DIM * (48 + 48 + 48 + 48 + 32),  # of 500, 256, 128, 64 and 32 positions
    "hgrn": 2 * 2 * 20,
    "hrrformer": HEADS * (HEAD + 1),
    "linear": LINEAR,
    "linformer": 2 * 16 * DIM,
    "lion": 2 * LINEAR,
    "local": 2 * 50 * DIM,
    "longformer": ALL,  # its window is longer
    "lru": 2 * 2 * 10,
    "luna": 256 * HEADS * (HEAD + 1),
    "mamba": 2 * 20 * (16 + 3),
    "mega": 2 * DIM * 16 + N * (8 + 16),
    "mlp_only": 0,
    "mra": ALL,
    "multiscale_conv": N * DIM,
    "nystrom": None,
    "performer": LINEAR,
    "reformer": ALL,
    "s4d": 2 * DIM * 64,
    "s5": 2 * 32,
    "sinkhorn": ALL,
    "skyformer": None,
    "sparse": 2 * (50 + 10 * 10) * DIM,
    "synthesizer": N * DIM,
    "tnn": N * 8,
    "transformer_ls": 2 * 16 * DIM + 32 * HEADS * (2 * HEAD + 1),
}

OTHER_OPTIONS = [
    ("local", {"window": 8, "look_around": 1}, 2 * 24 * DIM),
    ("local", {"window": 8, "layout": "strided"}, ALL),
    ("longformer", {"window": 8, "num_global": 2}, 2 * 10 * DIM + 2 * HEADS * (HEAD + 1)),
    ("sparse", {"pattern": "strided"}, ALL),
    ("sparse", {"pattern": "lra"}, 2 * (50 + 10 * 11) * DIM),
    ("lion", {"decay": "none"}, LINEAR),
    ("hgrn", {"kind": "rg_lru", "state_size": 24}, 24 * (2 + 3)),
    ("performer", {"kernel": "softmax"}, HEADS * 256 * (HEAD + 1)),
    ("mega", {"chunk": 20}, 2 * DIM * 16 + 20 * (8 + 16)),
    ("multiscale_conv", {"kind": "dilated", "kernel_size": 2}, N * DIM),
    ("synthesizer", {"dot_product": True}, ALL),
    ("gated_delta", {"gate": False, "conv_size": 0}, 2 * HEADS * 8 * 8),
    ("contextpool", {"base": "local"}, 2 * 50 * DIM + N * DIM),
    ("contextpool", {"base": "fnet"}, None),
]


def state_size(name: str, **options: object) -> int | None:
    spec = get_variant(name)
    return spec.build(spec.config.from_dict(options), DIMS).state_size(N)


def test_every_variant_has_its_figure():
    assert FIGURES.keys() == set(available())
    assert len(FIGURES) >= 39
    assert {name: state_size(name) for name in FIGURES} == FIGURES


@pytest.mark.parametrize(("name", "options", "expected"), OTHER_OPTIONS, ids=str)
def test_options_change_the_figure(name, options, expected):
    assert state_size(name, **options) == expected


def numbers_handed_on(mixer: SequenceMixer) -> int:
    """Count the numbers through which the outputs at later tokens depend on earlier tokens.

    It is the rank of the derivative, over two continuations of one beginning: what passes through s numbers has no
    higher one.
    """
    torch.manual_seed(1)
    past = torch.randn(BEFORE, mixer.dims.dim, dtype=torch.float64)
    futures = torch.randn(2, AFTER, mixer.dims.dim, dtype=torch.float64)

    def read(past: torch.Tensor) -> torch.Tensor:
        return mixer(torch.cat((past.expand(2, -1, -1), futures), dim=1))[:, BEFORE:].flatten()

    jacobian = torch.autograd.functional.jacobian(read, past, vectorize=True).flatten(1)
    return int(torch.linalg.matrix_rank(jacobian, rtol=1e-11))


BEFORE, AFTER = 12, 12
TIGHT = [
    ("linear", {}),
    ("cosformer", {}),
    ("lion", {"decay": "none"}),
    ("lion", {"decay": "fixed"}),
    ("lion", {"decay": "selective"}),
    ("gated_linear", {}),
    ("gated_delta", {"conv_size": 0}),
    ("gated_delta", {"gate": False, "conv_size": 0}),
    ("s4d", {"state_size": 4, "min_step": 0.1, "max_step": 1.0}),
    ("s5", {"state_size": 8, "blocks": 2, "min_step": 0.1, "max_step": 1.0}),
    ("lru", {"state_size": 4}),
    ("hgrn", {"state_size": 4}),
    ("hgrn", {"kind": "rg_lru", "state_size": 4}),
    pytest.param("mamba", {"state_size": 2, "inner_size": 8, "kernel_size": 3}, marks=pytest.mark.nightly),
    ("conv", {"kernel_size": 3}),
    ("gated_delta", {"conv_size": 3}),
    ("mamba", {"state_size": 2, "inner_size": 6, "kernel_size": 3}),
    pytest.param("mamba", {"state_size": 2, "inner_size": 12, "kernel_size": 3}, marks=pytest.mark.nightly),
    ("hgrn", {"kind": "rg_lru", "state_size": 10}),
    ("mlp_only", {}),
]
"""Recurrences that use every number that they keep."""


def small(name: str, **options: object) -> SequenceMixer:
    torch.manual_seed(0)
    spec = get_variant(name)
    dims = LayerDims(dim=8, num_heads=2, max_length=BEFORE + AFTER, causal=True)
    mixer = spec.build(spec.config.from_dict(options), dims).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return mixer


@pytest.mark.parametrize(("name", "options"), TIGHT, ids=str)
def test_a_recurrence_hands_on_as_many_numbers_as_it_says(name, options):
    mixer = small(name, **options)
    assert numbers_handed_on(mixer) == mixer.state_size(BEFORE)


def test_a_figure_that_forgets_a_direction_or_the_normaliser_is_told_apart():
    mixer = small("linear")
    assert numbers_handed_on(mixer) != mixer.state_size(BEFORE) - 2 * 4
    both = get_variant("s5").build(get_variant("s5").config(), DIMS)
    assert both.state_size(N) == 2 * 2 * len(both.log_step)
