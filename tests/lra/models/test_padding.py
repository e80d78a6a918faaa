import math

import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.models.padding import hide_padding
from lra.models.transformer import build_model

SIZES = {"model.dim": 8, "model.num_layers": 1, "model.mlp_dim": 8, "model.head_hidden": 8}
CONVNET = {"model.family": "convnet", "model.dim": 8, "model.num_layers": 1}


def results(model, tokens, mask):
    """Return the logits and the gradient of every parameter."""
    logits = model(tokens, mask)
    loss = (logits * torch.arange(1, logits.numel() + 1).view_as(logits)).sum()
    return [logits, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(
    ("task", "shape", "settings"),
    [
        ("listops", (3, 64), SIZES),
        ("retrieval", (2, 2, 64), SIZES),
        ("image_continuous", (2, 1024), SIZES),
        ("image", (2, 1024), CONVNET),
        ("image_continuous", (2, 1024), CONVNET),
    ],
)
def test_no_value_at_a_masked_position_reaches_logits_or_gradients(task, shape, settings):
    config = resolve(
        task=task,
        variant="conv" if settings is CONVNET else "full",
        profile=load_profile("modern"),
        seed=0,
        track="open",
        overrides=settings | {"model.dropout": 0.0},
    )
    tokens = torch.randint(1, 16, shape, generator=torch.Generator().manual_seed(0))
    values = [-1, 10**6]
    if task == "image_continuous":
        tokens, values = tokens.float(), [*values, math.nan, math.inf, 1e30]
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
    model = build_model(config, vocab_size=257, num_classes=10).eval()
    expected = results(model, tokens, mask)
    assert all(result.isfinite().all() for result in expected)
    for value in values:
        actual = results(model, torch.where(mask, tokens, value), mask)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), value


def test_masked_tokens_are_zero_and_zero_is_masked_where_it_is_padding():
    tokens, mask = torch.tensor([[3, 0, 9]], dtype=torch.uint8), torch.tensor([[True, True, False]])
    hidden, same = hide_padding(tokens, mask, zero_is_padding=False)
    assert hidden.dtype == torch.uint8
    assert hidden.tolist() == [[3, 0, 0]]
    assert same is mask
    assert hide_padding(tokens, mask, zero_is_padding=True)[1].tolist() == [[True, False, False]]
    assert hide_padding(tokens, None, zero_is_padding=True)[1].tolist() == [[True, False, True]]
    assert hide_padding(tokens, None, zero_is_padding=False) == (tokens, None)


def test_a_batch_of_none_has_no_logits():
    config = resolve(
        task="listops", variant="full", profile=load_profile("modern"), seed=0, track="open", overrides=SIZES
    )
    model = build_model(config, vocab_size=16, num_classes=10)
    logits = model(torch.zeros(0, 64, dtype=torch.long), torch.zeros(0, 64, dtype=torch.bool))
    assert logits.shape == (0, 10)
    logits.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
