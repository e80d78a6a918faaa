"""The kernelised and low-rank variants compile as one graph: nothing in forward waits for a value of a tensor."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import LayerDims, get_variant

NAMES = (
    "nystrom",
    "performer",
    "linear",
    "cosformer",
    "linformer",
    "luna",
    "synthesizer",
    "fnet",
    "skyformer",
    "lion",
    "lru",
    "gated_delta",
    "tnn",
    "hgrn",
    "mamba",
    "gau",
    "differential",
    "hrrformer",
    "s5",
)


@pytest.mark.nightly  # the tests of `full` compile one variant every day
@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name):
    torch.compiler.reset()  # the limit on compilations of one function is for all variants together
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
