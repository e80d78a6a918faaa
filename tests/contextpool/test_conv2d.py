"""The layer for ConvNets."""

import pytest
import torch
from torch import nn

from contextpool import ContextPool2d, PoolConfig


def make_layer(config=None, stride=2, noise=0.3):
    torch.manual_seed(0)
    layer = ContextPool2d(6, stride, config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += noise * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (9, 12), (1, 1), (5, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_layer_pools_at_the_centres_of_a_strided_convolution(rows, columns, stride):
    image = torch.randn(2, 6, rows, columns, dtype=torch.float64)
    y = make_layer(stride=stride)(image)
    assert y.shape == nn.Conv2d(6, 6, 3, stride=stride, padding=1).double()(image).shape
    assert torch.allclose(y, make_layer(stride=1)(image)[:, :, ::stride, ::stride], atol=1e-13)


def test_layer_predicts_from_a_two_dimensional_neighbourhood():
    layer = make_layer()
    image = torch.randn(1, 6, 8, 8, dtype=torch.float64).requires_grad_()
    layer(image)
    assert layer.last_sigma.shape == (1, 8, 8)
    tokens = image.flatten(2).transpose(1, 2)
    _, width = layer.predictor(tokens, None, (8, 8))
    (gradient,) = torch.autograd.grad(width.view(8, 8)[4, 4], image)
    seen = gradient[0].abs().sum(dim=0) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:7, 2:7] = True
    assert torch.equal(seen, expected)


def test_layer_keeps_constants_and_reports_sigma():
    layer = make_layer()
    assert layer.statistics() == {}
    constant = torch.randn(2, 6, 1, 1, dtype=torch.float64).expand(-1, -1, 9, 9)
    assert torch.allclose(layer(constant), constant[:, :, :5, :5], atol=1e-12)
    assert torch.allclose(layer.statistics()["sigma_mean"], layer.last_sigma.mean())
    assert layer.statistics().keys() == {"sigma_mean", "sigma_p10", "sigma_p50", "sigma_p90"}


def test_layer_without_anything_learned_is_a_gaussian_blur():
    layer = make_layer(PoolConfig(weights="uniform", sigma="fixed", initial_sigma=2.0), stride=1)
    assert not list(layer.parameters())
    image = torch.randn(1, 6, 10, 10, dtype=torch.float64)
    offset = torch.arange(10, dtype=torch.float64)[:, None] - torch.arange(10)
    blur = torch.softmax(-offset.square() / 8.0, dim=1)
    assert torch.allclose(layer(image), blur @ image @ blur.T, atol=1e-13)


def test_layer_trains_in_a_convnet():
    layer = make_layer(noise=0.0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), layer, nn.Conv2d(6, 2, 3, padding=1)).double()
    net(torch.randn(2, 1, 12, 12, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())
    with pytest.raises(ValueError, match="tree"):
        ContextPool2d(4, config=PoolConfig(backend="tree"))
    with pytest.raises(ValueError, match="stride"):
        ContextPool2d(6, 0)
    with pytest.raises(ValueError, match="tree"):
        ContextPool2d(6, config=PoolConfig(backend="tree"))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_compiled_layer_gives_the_same_numbers():
    layer = ContextPool2d(6, 2, PoolConfig(backend="pyramid"))
    x = torch.randn(2, 6, 24, 24)
    expected = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), expected, rtol=1e-5, atol=1e-5)
