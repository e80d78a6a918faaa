"""The module ContextPool: its predictor, its formulas, its masks, its switches."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from contextpool import ContextPool, PoolConfig, context_pool
from contextpool.predictor import Predictor

DIM = 24


def make(config=None, *, dtype=torch.float64, noise=0.3, **kwargs):
    """Build a module whose predictor is away from its start near zero."""
    torch.manual_seed(0)
    module = ContextPool(DIM, config, **kwargs).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += noise * torch.randn_like(parameter)
    return module


def tokens(length, batch=2, dtype=torch.float64):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def scattered(length, batch=2):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[:, length // 2] = True
    return mask


def test_follows_its_formulas():
    module, x, mask = make(), tokens(50), scattered(50)
    log_weight, sigma = module.predict(x, mask)
    a, b = module.predictor(x, mask)
    widest = 0.1 * mask.sum(dim=1, keepdim=True).double()
    offset = torch.logit((1.0 / widest).clamp(max=0.5))
    assert torch.equal(log_weight, a)
    assert torch.allclose(sigma, torch.clamp(widest * torch.sigmoid(b + offset), min=0.3), rtol=1e-12)
    assert torch.equal(module(x, mask), context_pool(x, log_weight, sigma, mask))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("taps", [1, 3, 5, 7])
@pytest.mark.parametrize("causal", [False, True])
def test_predictor_is_two_convolutions(length, taps, causal):
    torch.manual_seed(0)
    config = PoolConfig(kernel_size=taps, input_norm=False)
    predictor = Predictor(DIM, config, outputs=2, num_biases=1, causal=causal).double()
    x = tokens(length)
    padding = (taps - 1, 0) if causal else (taps // 2, taps // 2)
    hidden = F.gelu(predictor.inner(F.pad(x.transpose(1, 2), padding)))
    expected = predictor.outer(F.pad(hidden, padding))
    expected[:, 1] += predictor.bias
    assert torch.allclose(torch.stack(predictor(x), dim=1), expected, atol=1e-13)


def test_sizes_are_the_documented_defaults():
    predictor = ContextPool(256).predictor
    assert predictor.inner.weight.shape == (32, 256, 3)
    assert predictor.outer.weight.shape == (2, 32, 3)
    assert ContextPool(64).predictor.inner.weight.shape[0] == 16


@pytest.mark.parametrize(("length", "expected"), [(4, 0.3), (10, 0.5), (20, 1.0), (64, 1.0), (1000, 1.0), (5000, 1.0)])
def test_sigma_starts_at_one_token_whatever_the_length(length, expected):
    module = ContextPool(DIM).double()
    torch.nn.init.zeros_(module.predictor.outer.weight)
    mask = torch.zeros(1, length + 7, dtype=torch.bool)
    mask[:, :length] = True
    sigma = module.predict(tokens(length + 7, batch=1), mask)[1]
    assert torch.allclose(sigma, torch.full_like(sigma, expected), rtol=1e-6)


def test_initial_length_scales_the_start_with_the_length():
    module = ContextPool(DIM, PoolConfig(initial_sigma=4.0, initial_length=400))
    torch.nn.init.zeros_(module.predictor.outer.weight)
    for length, expected in ((400, 4.0), (100, 1.0), (1000, 10.0)):
        sigma = module.predict(tokens(length, dtype=torch.float32))[1]
        assert torch.allclose(sigma, torch.full_like(sigma, expected), rtol=1e-5)


def test_the_start_is_near_uniform_weights_with_gradients_everywhere():
    torch.manual_seed(0)
    module = ContextPool(DIM)
    x = tokens(100, dtype=torch.float32)
    log_weight, sigma = module.predict(x)
    assert log_weight.abs().max() < 0.5
    assert ((sigma - 1.0).abs() < 0.5).all()
    (module(x) * torch.randn(x.shape)).sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("weights", ["exp", "sigmoid", "softmax", "uniform"])
@pytest.mark.parametrize("sigma", ["learned", "fixed"])
@pytest.mark.parametrize("normalized", [True, False])
def test_no_switch_leaves_a_parameter_without_gradient(weights, sigma, normalized):
    module = make(PoolConfig(weights=weights, sigma=sigma, normalized=normalized))
    x = tokens(60)
    y = module(x)
    for name, parameter in module.named_parameters():
        (gradient,) = torch.autograd.grad((y * tokens(60).sin()).sum(), parameter, retain_graph=True)
        assert gradient.abs().max() > 1e-9, name
    count = len(list(module.parameters()))
    assert (count == 0) == (weights == "uniform" and sigma == "fixed")


def test_content_and_amount_of_padding_reach_nothing():
    module, x = make(), tokens(40)
    mask = scattered(40)
    padded = F.pad(mask, (0, 13))
    filled = torch.cat((x.masked_fill(~mask[:, :, None], 1e3), torch.full((2, 13, DIM), -1e3)), dim=1)
    filled = filled.double().requires_grad_()
    y = module(filled, padded)
    expected = module(x, mask)
    assert torch.allclose(y[:, :40], expected, atol=1e-12)
    assert not y[~padded].any()
    (y * torch.randn_like(y)).sum().backward()
    assert not filled.grad[~padded].any()
    assert filled.grad[padded].isfinite().all()


def test_suffix_padding_equals_a_shorter_sequence():
    module, x = make(), tokens(40)
    mask = torch.arange(40).expand(2, -1) < 25
    assert torch.allclose(module(x, mask)[:, :25], module(x[:, :25]), atol=1e-12)


def test_a_sequence_of_padding_gives_zeros_and_finite_gradients():
    for config in (PoolConfig(), PoolConfig(weights="softmax", normalized=False)):
        module, x, mask = make(config), tokens(30).requires_grad_(), scattered(30)
        mask[1] = False
        y = module(x, mask)
        y.sin().sum().backward()
        assert not y[1].any()
        assert x.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_causal_form_sees_nothing_of_the_future(kernel_size):
    module, x = make(PoolConfig(kernel_size=kernel_size), causal=True, max_length=64), tokens(64)
    changed = x.clone()
    changed[:, 20:] = 3.0
    assert torch.allclose(module(changed)[:, :20], module(x)[:, :20], atol=1e-12)
    assert torch.allclose(module(x[:, :20]), module(x)[:, :20], atol=1e-12)  # nor of the length
    assert not torch.allclose(module(changed)[:, 20:], module(x)[:, 20:])


def test_causal_bare_sums_do_not_depend_on_the_length():
    module, x = make(PoolConfig(normalized=False), causal=True, max_length=64), tokens(64)
    mask = torch.arange(64).expand(2, -1) < 20
    expected = module(x)[:, :20]
    assert expected.abs().max() > 1e-3
    assert torch.allclose(module(x[:, :20]), expected, atol=1e-12)
    assert torch.allclose(module(x, mask)[:, :20], expected, atol=1e-12)


@pytest.mark.parametrize(("backend", "causal"), [("tree", False), ("pyramid", True)])
def test_a_backend_without_the_form_is_refused_at_once(backend, causal):
    with pytest.raises(ValueError, match=f"'{backend}' has no"):
        ContextPool(DIM, PoolConfig(backend=backend), causal=causal, max_length=8)
    ContextPool(DIM, PoolConfig(backend=backend), causal=not causal, max_length=8)


def test_causal_form_refuses_what_would_look_ahead():
    with pytest.raises(ValueError, match="max_length"):
        ContextPool(DIM, causal=True)
    with pytest.raises(ValueError, match="look ahead"):
        ContextPool(DIM, PoolConfig(weights="softmax", normalized=False), causal=True, max_length=8)
    with pytest.raises(ValueError, match="grid"):
        ContextPool(DIM, causal=True, max_length=8, grid=(2, 4))


def test_prefix_tokens_are_left_out_both_ways():
    module, x, mask = make(num_prefix=2), tokens(30), scattered(30)
    mask[:, :2] = True
    y = module(x, mask)
    assert torch.equal(y[:, :2], x[:, :2])
    assert torch.allclose(y[:, 2:], make()(x[:, 2:], mask[:, 2:]), atol=1e-13)
    assert module.last_sigma.shape == (2, 28)
    assert torch.equal(module(x[:, :2]), x[:, :2])


def test_constant_sequences_are_fixed_points():
    x = tokens(1).expand(-1, 80, -1)
    assert torch.allclose(make()(x), x, atol=1e-12)


def test_exp_and_softmax_coincide_when_normalised():
    x, mask = tokens(40), scattered(40)
    outputs = [make(PoolConfig(weights=weights))(x, mask) for weights in ("exp", "softmax")]
    assert torch.allclose(*outputs, atol=1e-13)


def test_softmax_weights_average_one_over_the_real_tokens():
    x, mask = tokens(40), scattered(40)
    module = make(PoolConfig(weights="softmax", normalized=False))
    for used in (None, mask):
        weight = module.predict(x, used)[0].exp()
        weight = weight if used is None else weight.masked_fill(~used, 0.0)
        mean = weight.sum(dim=1) / (40 if used is None else used.sum(dim=1))
        assert torch.allclose(mean, torch.ones(2, dtype=torch.float64))


def test_sigma_stays_within_its_bounds():
    module = make(PoolConfig(sigma_min=0.5, sigma_fraction=0.2), noise=30.0)
    sigma = module.predict(tokens(200))[1]
    assert sigma.min() == 0.5
    assert 39.0 < sigma.max() <= 40.0


def test_weights_and_sigma_stay_in_float32_under_autocast():
    module, x = make(dtype=torch.float32, noise=0.0), tokens(80, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_weight, sigma = module.predict(x)
        y = module(x)
    assert log_weight.dtype == sigma.dtype == torch.float32
    assert sigma.unique().numel() > 100  # the offset does not eat the resolution of the logits
    assert torch.allclose(sigma, module.predict(x)[1], rtol=5e-3)
    assert torch.allclose(y.float(), module(x), atol=2e-2)
    low = module.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert low.isfinite().all()


def test_statistics_describe_sigma_of_the_last_pass():
    module, x, mask = make(), tokens(101), scattered(101)
    assert module.last_sigma is None
    assert module.statistics() == {}
    module(x, mask)
    sigma = module.predict(x, mask)[1][mask]
    statistics = module.statistics()
    assert set(statistics) == {"sigma_mean", "sigma_p10", "sigma_p50", "sigma_p90"}
    assert all(value.dim() == 0 and not value.requires_grad for value in statistics.values())
    assert torch.allclose(statistics["sigma_mean"], sigma.mean())
    for percent in (10, 50, 90):
        expected = torch.quantile(sigma, percent / 100, interpolation="nearest")
        assert torch.allclose(statistics[f"sigma_p{percent}"], expected)
    assert torch.equal(module.last_sigma[mask], sigma.detach())
    assert not module.last_sigma[~mask].any()
    module(x, torch.zeros_like(mask))
    assert not any(module.statistics().values())


def test_learns_the_width_of_a_moving_average():
    torch.manual_seed(0)
    module = ContextPool(8)
    x = torch.randn(8, 100, 8)
    target = context_pool(x, torch.zeros(8, 100), torch.full((8, 100), 3.0))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(module(x), target).backward()
        optimizer.step()
    module(x)
    assert abs(float(module.statistics()["sigma_p50"]) - 3.0) < 0.3


def test_wrong_settings_are_refused():
    wrong = [{"kernel_size": 2}, {"hidden": -1}, {"sigma_min": 0.0}, {"initial_sigma": -1.0}, {"reference_length": -1}]
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            PoolConfig(**options)


def test_compiles_without_a_graph_break():
    module, x, mask = make(noise=0.0), tokens(64), scattered(64)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x, mask), module(x, mask), atol=1e-12)


def test_importing_the_package_registers_nothing():
    folder = Path(__file__).parents[2] / "contextpool"
    registering = {path.name for path in folder.glob("*.py") if "register_variant(" in path.read_text(encoding="utf-8")}
    assert registering == {"variant.py"}
    importing = [
        path.name
        for path in folder.glob("*.py")
        if re.search(r"import.*\bvariant\b|contextpool.variant import", path.read_text(encoding="utf-8"))
    ]
    assert not importing


def test_the_example_in_the_docs_runs():
    page = (Path(__file__).parents[2] / "docs" / "contextpool.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 1
    names = {}
    exec(compile(blocks[0], "docs/contextpool.md", "exec"), names)
    assert names["y"].shape == names["x"].shape
    assert names["smooth"].shape == names["x"].shape
    assert all(parameter.grad is not None for parameter in names["pool"].parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "max_length": 40}, {"num_prefix": 1}, {"grid": (5, 8)}], ids=str
)
def test_no_value_at_a_masked_position_reaches_results_or_gradients(options, value):
    length = 40 + options.get("num_prefix", 0)
    module, mask = make(**options), scattered(length)
    mask[1, 0] = False

    def results(x):
        leaf = x.clone().requires_grad_()
        out = module(leaf, mask)
        return [out, *torch.autograd.grad(out.sin().sum(), (leaf, *module.parameters()))]

    x = tokens(length)
    for actual, expected in zip(results(x.masked_fill(~mask[:, :, None], value)), results(x), strict=True):
        assert torch.equal(actual, expected)
