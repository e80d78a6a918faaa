"""Norms of the stream: real tokens only, running statistics in evaluation, both placements; broken twins are caught."""

import pytest
import torch
from torch import nn

from lra.errors import UsageError
from lra.models.denoiser import Denoiser
from lra.models.norms import MOMENTUM, MaskedBatchNorm
from lra.models.transformer import Block, build_model
from lra.tasks import info_of
from runners.train.plan import check_shareable
from tests.lra.models.test_transformer import small
from tests.runners.tiny_runs import tiny

MASK = torch.arange(9) < torch.tensor([[9], [4], [1], [0]])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3.0 + 2.0


def batch_norm():
    norm = MaskedBatchNorm(5, 1e-5).double()
    with torch.no_grad():
        norm.weight.copy_(numbers(5, seed=1))
        norm.bias.copy_(numbers(5, seed=2))
    return norm


def torchs_own(norm):
    """Return torch's batch norm with the same weights, to be called with the real tokens alone."""
    own = nn.BatchNorm1d(5, eps=norm.eps, momentum=MOMENTUM).double()
    own.load_state_dict(norm.state_dict(), strict=False)
    return own


def check_against_torch(norm):
    """Train on two batches, evaluate on one, and compare all with torch's batch norm of the real tokens."""
    own = torchs_own(norm)
    for seed in (3, 4):
        x = numbers(4, 9, 5, seed=seed).requires_grad_()
        alone = x.detach()[MASK].requires_grad_()
        ours, theirs = norm(x, MASK)[MASK], own(alone)
        torch.testing.assert_close(ours, theirs)
        weights = numbers(*theirs.shape, seed=5)
        (ours * weights).sum().backward()
        (theirs * weights).sum().backward()
        torch.testing.assert_close(x.grad[MASK], alone.grad)
        assert not x.grad[~MASK].any()
    torch.testing.assert_close(norm.running_mean, own.running_mean)
    torch.testing.assert_close(norm.running_var, own.running_var)
    x = numbers(4, 9, 5, seed=6)
    torch.testing.assert_close(norm.eval()(x, MASK)[MASK], own.eval()(x[MASK]))
    torch.testing.assert_close(norm(x, None).flatten(0, 1), own(x.flatten(0, 1)))


def test_batch_norm_is_that_of_the_real_tokens_alone():
    check_against_torch(batch_norm())


class CountsPadding(MaskedBatchNorm):
    def forward(self, x, mask):
        return super().forward(torch.where(mask.unsqueeze(-1), x, 0.0) if mask is not None else x, None)


class KeepsNothing(MaskedBatchNorm):
    def forward(self, x, mask):
        kept = self.running_mean.clone()
        out = super().forward(x, mask)
        self.running_mean.copy_(kept)
        return out


class NormalisesInEvaluation(MaskedBatchNorm):
    def forward(self, x, mask):
        self.training = True
        return super().forward(x, mask)


@pytest.mark.parametrize("kind", [CountsPadding, KeepsNothing, NormalisesInEvaluation])
def test_broken_twins_of_batch_norm_are_caught(kind):
    norm = batch_norm()
    norm.__class__ = kind
    with pytest.raises(AssertionError):
        check_against_torch(norm)


def test_a_batch_without_a_real_token_leaves_the_running_statistics():
    norm = batch_norm()
    norm(numbers(4, 9, 5), MASK)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert norm(numbers(2, 9, 5), torch.zeros(2, 9, dtype=torch.bool)).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("norm", ["layer", "batch", "rms"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_padding_never_reaches_the_logits_and_no_example_in_evaluation_another(norm, placement):
    overrides = {"model.norm": norm, "model.norm_placement": placement}
    model = build_model(small(**overrides), 16, 10).double()
    tokens = torch.randint(1, 16, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor([[7], [7], [3]])
    other = torch.where(mask, tokens, (tokens + 3) % 16)
    torch.testing.assert_close(model(tokens, mask), model(other, mask))
    torch.testing.assert_close(model(tokens[:, :7], mask[:, :7]), model(other, mask))
    model.eval()
    torch.testing.assert_close(model(tokens[2:, :3]), model(other, mask)[2:])


def test_the_placements_are_the_two_formulas():
    x, mask = numbers(2, 6, 16), torch.arange(6) < torch.tensor([[6], [4]])
    for placement in ("pre", "post"):
        config = small(**{"model.norm": "rms", "model.norm_placement": placement})
        model = build_model(config, 16, 10).double().eval()
        block: Block = model.blocks[0]
        for norm in (block.mixer_norm, block.mlp_norm):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
        mixer, mlp = block.mixer, block.mlp
        if placement == "pre":
            mixed = x + mixer(block.mixer_norm(x), mask)
            expected = mixed + mlp(block.mlp_norm(mixed))
            assert isinstance(model.head.norm, nn.RMSNorm)
        else:
            mixed = block.mixer_norm(x + mixer(x, mask))
            expected = block.mlp_norm(mixed + mlp(mixed))
            assert not list(model.head.norm.parameters())
        torch.testing.assert_close(block(x, mask), expected)
        root = x.square().mean(dim=2, keepdim=True).add(config.model.norm_eps).rsqrt()
        torch.testing.assert_close(block.mixer_norm(x), x * root * block.mixer_norm.weight)


def test_denoising_beside_the_task_looks_at_each_batch_once():
    config = small(**{"model.norm": "batch", "pretrain.share": 0.5})
    tokens = torch.randint(1, 16, (3, 12), generator=torch.Generator().manual_seed(0))
    hidden = tokens % 3 == 0
    found = {}
    for with_logits in (False, True):
        model = build_model(config, 16, 10)
        denoiser = Denoiser(model, config, info_of(config)).train()
        denoiser.with_logits = with_logits
        denoiser(tokens, None, hidden)
        found[with_logits] = model.state_dict()
        assert not torch.equal(model.head.norm.running_mean, torch.zeros(16))
    assert all(torch.equal(value, found[True][name]) for name, value in found[False].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.norm": "batch", "train.accumulation": 2}, r"model\.norm: .* train\.accumulation has to be 1"),
        ({"model.norm": "batch", "model.causal": True}, r"model\.causal: .*model\.norm=batch are of later tokens"),
        ({"model.norm": "Batch"}, "model.norm: input should be 'layer', 'batch' or 'rms'"),
    ],
)
def test_what_batch_norm_cannot_do_is_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        tiny(**overrides)


def test_several_processes_do_not_share_a_batch_that_is_normalised():
    check_shareable([tiny(**{"model.norm": "rms"})], 2)
    with pytest.raises(UsageError, match="one process has to compute it"):
        check_shareable([tiny(**{"model.norm": "batch"})], 2)
