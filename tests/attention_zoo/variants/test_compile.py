"""The kernelised and low-rank variants compile as one graph: nothing in forward waits for a value of a tensor."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import LayerDims, get_variant

EVERY_DAY = ("nystrom",)  # beside `full`, whose own tests compile it
OTHERS = ("performer", "linear", "cosformer", "linformer", "luna", "synthesizer", "fnet", "skyformer")


@pytest.mark.parametrize("name", [*EVERY_DAY, *(pytest.param(name, marks=pytest.mark.nightly) for name in OTHERS)])
def test_compiles_as_one_graph(name):
    torch.manual_seed(0)
    spec = get_variant(name)
    mixer = spec.build(spec.config(), LayerDims(dim=16, num_heads=2, max_length=80))
    x = torch.randn(2, 80, 16, requires_grad=True)
    mask = torch.rand(2, 80) > 0.3
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    outs = compiled(x, mask), mixer(x, mask)
    torch.testing.assert_close(*outs)
    gradients = [torch.autograd.grad(out.sin().sum(), x)[0] for out in outs]
    torch.testing.assert_close(*gradients)
