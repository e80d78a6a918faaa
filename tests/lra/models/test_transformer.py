import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.models.transformer import build_model, count_parameters, mixers, sinusoid_table


def config(profile="quick", seed=0, variant="full", **overrides) -> RunConfig:
    return resolve(
        task="listops", variant=variant, profile=load_profile(profile), seed=seed, track="open", overrides=overrides
    )


def small(seed=0, variant="full", **overrides) -> RunConfig:
    sizes = {"model.dim": 16, "model.num_heads": 2, "model.mlp_dim": 32, "model.num_layers": 2, "model.dropout": 0.0}
    return config(seed=seed, variant=variant, **sizes | {"model.attention_dropout": 0.0} | overrides)


@pytest.mark.parametrize(("profile", "parameters"), [("official", 8_948_746), ("nystromformer", 209_802)])
def test_parameter_counts_are_the_published_ones(profile, parameters):
    with torch.device("meta"):
        assert count_parameters(build_model(config(profile), vocab_size=16, num_classes=10)) == parameters


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned", "rotary", "alibi", "t5"])
@pytest.mark.parametrize("pooling", ["cls", "last", "masked_mean", "padded_mean", "max", "attention"])
def test_padding_never_reaches_the_logits(positions, pooling):
    model = build_model(small(**{"model.positions": positions, "model.pooling": pooling}), 16, 10).double().eval()
    tokens = torch.randint(1, 16, (3, 12), generator=torch.Generator().manual_seed(0))
    alone = model(tokens[:, :7])
    mask = torch.arange(12).expand(3, 12) < 7
    other = torch.where(mask, tokens, (tokens + 3) % 16)
    torch.testing.assert_close(model(tokens, mask), alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(other, mask), alone, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model(tokens), alone, rtol=1e-3, atol=1e-3)  # the twin: unmasked, it does matter


def test_the_padded_mean_is_the_masked_one_scaled_by_the_share_of_real_tokens():
    x = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(12) < torch.tensor([[12], [7], [1]])
    masked, padded = (
        build_model(small(**{"model.pooling": pooling}), 16, 10).head.pool(x, mask)
        for pooling in ("masked_mean", "padded_mean")
    )
    expected = torch.stack([x[n, :count].mean(dim=0) for n, count in enumerate((12, 7, 1))])
    torch.testing.assert_close(masked, expected)
    share = mask.sum(dim=1, keepdim=True) / small().model.max_length
    torch.testing.assert_close(padded, expected * share)
    assert not torch.allclose(masked[1], x[1].mean(dim=0), rtol=1e-3, atol=1e-3)  # padding would show


def pooled(pooling, x, mask):
    return build_model(small(**{"model.pooling": pooling}), 16, 10).double().head.pool(x, mask)


def test_last_max_and_learnt_weights_look_at_real_tokens_only():
    x = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 5.0
    mask = torch.arange(12) < torch.tensor([[12], [7], [1], [0]])
    mask[1, 3] = False  # such as a black pixel
    x[~mask] = 1e6
    rows = [x[n][mask[n]] for n in range(3)]
    none = torch.zeros(1, 16, dtype=torch.float64)
    expected = {"last": [row[-1] for row in rows], "max": [row.amax(dim=0) for row in rows]}
    head = build_model(small(**{"model.pooling": "attention"}), 16, 10).double().head
    expected["attention"] = [head.score(row).softmax(dim=0).T[0] @ row for row in rows]
    for pooling, wanted in expected.items():
        torch.testing.assert_close(pooled(pooling, x, mask), torch.cat((torch.stack(wanted), none)))
        torch.testing.assert_close(pooled(pooling, x[:1], None), torch.stack(wanted[:1]))
        with pytest.raises(AssertionError):  # the twin that forgets the mask
            torch.testing.assert_close(pooled(pooling, x, None), torch.cat((torch.stack(wanted), none)))
    head.pool(x[:2], mask[:2]).sum().backward()
    assert head.score.weight.grad.any()  # learnt weights learn


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "t5"])  # ALiBi is the same read backwards
def test_positions_matter_and_none_means_none(positions):
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8]])
    flipped = tokens.flip(1)
    for kind, same in ((positions, False), ("none", True)):
        model = build_model(small(**{"model.positions": kind}), 16, 10).double().eval()
        if kind == "learned":
            torch.nn.init.normal_(model.embedding.positions)
        assert torch.allclose(model(tokens), model(flipped), rtol=1e-9, atol=1e-12) is same


def test_variants_under_one_seed_share_the_weights_they_have_in_common():
    full, pooled, other = (
        build_model(small(seed, variant), 16, 10).state_dict()
        for seed, variant in ((0, "full"), (0, "contextpool"), (1, "full"))
    )
    shared = [name for name in full if name in pooled]
    assert len(shared) > 20
    assert all(torch.equal(full[name], pooled[name]) for name in shared)
    assert not torch.equal(full["embedding.tokens.weight"], other["embedding.tokens.weight"])
    assert not torch.equal(full["blocks.0.mlp.0.weight"], full["blocks.1.mlp.0.weight"])


def test_mixers_are_the_outermost_ones_in_order():
    model = build_model(small(variant="contextpool"), 16, 10)
    assert [id(mixer) for mixer in mixers(model)] == [id(block.mixer) for block in model.blocks]


def test_sinusoids_are_the_papers():
    table = sinusoid_table(50, 7)
    assert table.shape == (50, 7)
    expected = torch.sin(torch.tensor(13.0) / 10000 ** (2 / 7))
    torch.testing.assert_close(table[13, 2], expected)
    torch.testing.assert_close(table[13, 1], torch.cos(torch.tensor(13.0)))


def test_rotary_asks_the_variant_and_refuses_one_without_heads():
    assert small(**{"model.positions": "rotary"}).variant.options["rotary"] is True
    assert small(**{"model.positions": "alibi"}).variant.options["bias"] == "alibi"
    assert small(**{"model.positions": "t5"}).variant.options["bias"] == "t5"
