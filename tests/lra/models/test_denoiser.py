"""The denoiser: what it may see, what counts in its loss, and which places are hidden."""

import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.models.denoiser import Denoiser, hidden_places
from lra.models.transformer import Embedding, build_model
from lra.tasks import get_task

LENGTH = 16
SIZES = {
    "model.dim": 8, "model.num_layers": 2, "model.num_heads": 2, "model.mlp_dim": 8, "model.embedding_std": 1.0,
}  # fmt: skip


def encode(model, *inputs):
    x, mask = model.embedding(*inputs)
    for block in model.blocks:
        x = block(x, mask)
    return x, mask


def denoiser(task="text", variant="full", **overrides):
    sizes = SIZES | ({"data.max_length": LENGTH, "model.max_length": LENGTH} if task in ("text", "retrieval") else {})
    config = resolve(
        task=task, variant=variant, profile=load_profile("modern"), seed=0, track="open",
        overrides=sizes | {"pretrain.share": 0.5} | overrides,
    )  # fmt: skip
    info = get_task(task).info
    return Denoiser(build_model(config, info.vocab_size, info.num_classes), config, info).eval()


def batch(shape=(3, LENGTH)):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 257, shape, generator=generator, dtype=torch.int16)
    hidden = torch.rand(shape, generator=generator) < 0.4
    return tokens, hidden


def changed_where(tokens, places):
    return torch.where(places, (tokens + 100) % 256 + 1, tokens)


def states(model, tokens, mask, hidden, monkeypatch):
    """Return what the decoder of a denoiser is given: the prediction without the targets."""
    seen = []
    handle = model.decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(tokens, mask, hidden)
    handle.remove()
    return seen[0]


def test_a_prediction_does_not_depend_on_what_is_hidden(monkeypatch):
    model, (tokens, hidden) = denoiser(), batch()
    found = states(model, tokens, None, hidden, monkeypatch)
    assert torch.equal(found, states(model, changed_where(tokens, hidden), None, hidden, monkeypatch))
    assert not torch.equal(found, states(model, changed_where(tokens, ~hidden), None, hidden, monkeypatch))

    # The broken twin: an encoder that is shown the tokens.
    real = Embedding.forward
    monkeypatch.setattr(Embedding, "forward", lambda self, tokens, mask, *_: real(self, tokens, mask))
    found = states(model, tokens, None, hidden, monkeypatch)
    assert not torch.equal(found, states(model, changed_where(tokens, hidden), None, hidden, monkeypatch))


def test_hidden_values_are_not_seen_either(monkeypatch):
    model = denoiser("image_continuous")
    tokens = torch.arange(1024, dtype=torch.int16).reshape(1, -1) % 256
    hidden = torch.arange(1024).reshape(1, -1) % 3 == 0
    found = states(model, tokens, None, hidden, monkeypatch)
    assert torch.equal(found, states(model, torch.where(hidden, 7, tokens), None, hidden, monkeypatch))
    assert not torch.equal(found, states(model, torch.where(~hidden, 7, tokens), None, hidden, monkeypatch))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "twin"])
def test_a_causal_model_predicts_from_what_came_before(causal, monkeypatch):
    model, (tokens, _) = denoiser(**{"model.causal": causal}), batch()
    model.causal = True  # the broken twin: the next token is asked of a model that sees it
    later = torch.arange(LENGTH).expand(3, -1) > 5
    found = states(model, tokens, None, None, monkeypatch).reshape(3, LENGTH - 1, -1)
    other = states(model, changed_where(tokens, later), None, None, monkeypatch).reshape(3, LENGTH - 1, -1)
    assert torch.equal(found[:, :6], other[:, :6]) == causal
    assert not torch.equal(found, other)


def test_the_next_token_is_the_target():
    model, (tokens, _) = denoiser(**{"model.causal": True}), batch((1, LENGTH))
    mask = torch.arange(LENGTH).reshape(1, -1) < 9
    with torch.no_grad():
        x, _ = encode(model.model, torch.where(mask, tokens, 0), mask)
        logits = model.decoder(model.model.head.norm(x))[0, :8]
    expected = torch.nn.functional.cross_entropy(logits, tokens[0, 1:9].long(), reduction="sum")
    found = model(tokens, mask)
    assert found.places.tolist() == [8]
    assert found.losses.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("hide", [True, False], ids=["sound", "twin"])
def test_padding_does_not_count(hide, monkeypatch):
    model, (tokens, hidden) = denoiser(), batch()
    short, mask = tokens[:, :10], torch.arange(LENGTH).expand(3, -1) < 10
    if not hide:  # the broken twin: every place is taken for a real one
        monkeypatch.setattr("lra.models.denoiser.hide_padding", lambda tokens, mask, zero_is_padding: (tokens, None))
    alone, padded = model(short, None, hidden[:, :10]), model(tokens, mask, hidden)
    same = torch.allclose(alone.losses, padded.losses, atol=1e-5)
    assert (same and torch.equal(alone.places, padded.places)) == hide
    assert torch.equal(alone.places, hidden[:, :10].sum(dim=1))


def test_the_loss_is_that_of_hidden_places_alone():
    model, (tokens, hidden) = denoiser(), batch()
    with torch.no_grad():
        x, _ = encode(model.model, tokens, None, hidden, model.hidden_vector)
        logits = model.decoder(model.model.head.norm(x))
    found = model(tokens, None, hidden)
    for row in range(3):
        places = hidden[row]
        expected = torch.nn.functional.cross_entropy(logits[row][places], tokens[row][places].long(), reduction="sum")
        assert found.losses[row].item() == pytest.approx(expected.item(), rel=1e-5)
        assert found.right[row] == (logits[row][places].argmax(dim=1) == tokens[row][places]).sum()
    assert found.mean_loss().item() == pytest.approx(found.losses.sum().item() / hidden.sum().item(), rel=1e-6)


def test_nothing_hidden_gives_no_loss_and_no_gradient_that_is_not_finite():
    model, (tokens, hidden) = denoiser(), batch()
    loss = model(tokens, None, hidden & False).mean_loss()
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_pair_is_two_documents_that_count_for_one_example():
    model = denoiser("retrieval")
    tokens, hidden = batch((3, 2, LENGTH))
    found = model(tokens, None, hidden)
    alone = model(tokens.flatten(0, 1), None, hidden.flatten(0, 1))
    assert torch.equal(found.places, alone.places.reshape(3, 2).sum(dim=1))
    torch.testing.assert_close(found.losses, alone.losses.reshape(3, 2).sum(dim=1))


def test_black_that_is_padding_is_neither_hidden_nor_predicted():
    model = denoiser("image", **{"data.legacy_zero_mask": True})
    tokens = torch.zeros(1, 1024, dtype=torch.int16)
    tokens[0, :10] = 5
    assert model(tokens, None, torch.ones(1, 1024, dtype=torch.bool)).places.tolist() == [10]


def test_the_distance_of_values_is_a_mean_of_their_normalised_distances():
    model = denoiser("image_continuous")
    assert model.decoder.out_features == 1
    torch.nn.init.zeros_(model.decoder.weight)
    torch.nn.init.zeros_(model.decoder.bias)  # it predicts the mean of all levels
    mean, std = model.normalisation
    tokens, hidden = torch.full((1, 1024), 255, dtype=torch.int16), torch.arange(1024).reshape(1, -1) < 100
    found = model(tokens, None, hidden)
    assert found.mean_loss().item() == pytest.approx((1.0 - mean) / std, rel=1e-5)
    assert found.right.tolist() == [0]
    assert model(torch.full_like(tokens, round(255 * mean)), None, hidden).right.tolist() == [100]
    assert denoiser("image_continuous", **{"pretrain.loss": "cross_entropy"}).decoder.out_features == 256


@pytest.mark.parametrize("span", [1, 3, 8])
def test_the_share_of_hidden_places_is_the_rate_everywhere(span):
    rate, length = 0.3, 20
    generator = torch.Generator().manual_seed(0)
    hidden = hidden_places(torch.rand((20_000, length + span - 1), generator=generator), rate, span)
    assert hidden.shape == (20_000, length)
    assert (hidden.float().mean(dim=0) - rate).abs().max() < 0.02  # at the ends as in the middle
    runs = hidden[:, span : length - span]
    ends = runs & ~hidden[:, span + 1 : length - span + 1]  # where a run of hidden places ends
    whole = torch.stack([hidden[:, span - back : length - span - back] for back in range(span)]).all(dim=0)
    assert ends.any()
    assert (ends & ~whole).sum() == 0  # no run is shorter than a span


def test_the_rates_are_those_of_the_paper():
    rates = {"listops": 0.1, "text": 0.15, "retrieval": 0.15, "image": 0.5, "pathfinder": 0.5, "pathx": 0.5}
    assert {task: get_task(task).info.mask_rate for task in rates} == rates
