"""The pyramid: its stencils, its levels and their transpose."""

import math

import pytest
import torch

from contextpool.backends.pyramid.levels import Levels, Nodes
from contextpool.backends.pyramid.stencils import BETA, coarsen_stencil

DOUBLE = torch.zeros(0, dtype=torch.float64)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_stencils_have_unit_mass(level):
    mass = coarsen_stencil(level, torch.float64, torch.device("cpu")).sum(dim=1)
    assert torch.allclose(mass, torch.ones_like(mass), atol=1e-8)


LANES = pytest.mark.parametrize("lanes", [2, 1], ids=["sequence by sequence", "side by side"])


@LANES
@pytest.mark.parametrize("token", [0, 200, 399])
def test_every_level_holds_the_sequence_blurred_by_its_own_width(token, lanes):
    levels = Levels.of(2, 400, 4, lanes)
    nodes = Nodes(levels, 1, DOUBLE)
    nodes.tokens[1, token] = 1.0
    nodes.build()
    for level in range(1, 5):
        spacing = 2**level
        blur = spacing / BETA
        first = levels.node(level, lanes - 1, 0)
        node = torch.arange(-16, 16 * (levels.blocks[level] + 1))
        values = nodes.buffer.view(-1, levels.width)[first + node, levels.width - 1]
        offset = node.double() * spacing - token
        expected = torch.exp(-offset.square() / (2 * blur**2)) / (blur * math.sqrt(2 * math.pi))
        assert (values - expected).abs().max() < 1e-7 * expected.max()


@LANES
def test_collapse_is_the_transpose_of_build(lanes):
    draw = torch.Generator().manual_seed(0)
    levels = Levels.of(2, 400, 4, lanes)
    up, down = Nodes(levels, 3, DOUBLE), Nodes(levels, 3, DOUBLE)
    up.tokens.fill_(1.0)
    up.build()
    computed = up.buffer > 0  # all weights of the stencils are positive
    tokens = torch.randn(2, 400, 3, generator=draw, dtype=torch.float64)
    up.tokens.copy_(tokens)
    up.build()
    down.buffer.normal_(generator=draw).mul_(computed)
    expected = (up.buffer * down.buffer).sum()
    down.collapse()
    assert torch.allclose((down.tokens * tokens).sum(), expected, rtol=1e-12)
