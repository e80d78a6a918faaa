"""Reformer against dense attention under the pattern of its hashes, written out pair by pair."""

import itertools

import pytest
import torch

from attention_zoo.functional import attention
from attention_zoo.masking import masked_softmax
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, assert_same_with_and_without_mask, make


def reformer_pattern(mixer, q, mask):
    """Write out who sees whom, head by head: (batch, num_heads, length, length)."""
    size, (batch, heads, length, _) = mixer.config.chunk_size, q.shape
    allowed = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for b, h, rotation in itertools.product(range(batch), range(heads), mixer.rotations):
        turned = q[b, h] @ rotation[h].to(q.dtype)
        buckets = torch.cat((turned, -turned), dim=-1).argmax(dim=-1).tolist()
        real = [i for i in range(length) if mask is None or mask[b, i]]
        chunk = {i: place // size for place, i in enumerate(sorted(real, key=lambda i: (buckets[i], i)))}
        for i, j in itertools.product(real, repeat=2):
            if i != j and chunk[i] - chunk[j] in (0, 1):
                allowed[b, h, i, j] = True
    alone = ~allowed.any(dim=-1)
    itself = torch.ones_like(alone) if mixer.config.scores == "lra" else alone
    return allowed | torch.diag_embed(itself if mask is None else itself & mask[:, None])


def sort_and_attend(mixer, x, mask):
    """Attend to what was hashed beside a token, from the formula of each form of the scores."""
    q, v = (mixer.projections.to_heads(f(x)) for f in (mixer.projections.query, mixer.projections.value))
    allowed = reformer_pattern(mixer, q.detach(), mask)
    dot = q @ q.transpose(-2, -1)
    norms, width = q.norm(dim=-1)[:, :, None, :], q.shape[-1]
    scores = {"scaled": dot / norms / width**0.5, "unit": dot / norms, "lra": dot * width**0.5}[mixer.config.scores]
    weights = masked_softmax(scores, allowed)
    return mixer.projections.merge(weights @ v, mask)


@pytest.mark.parametrize("scores", ["scaled", "unit", "lra"])
@pytest.mark.parametrize("num_hashes", [1, 3])
def test_the_scores_are_those_of_each_source(scores, num_hashes):
    mixer = make("reformer", length=37, dim=12, chunk_size=4, num_buckets=4, num_hashes=num_hashes, scores=scores)
    assert_same_with_and_without_mask(mixer, sort_and_attend, 37)
    for other in {"scaled", "unit", "lra"} - {scores}:
        twin = make("reformer", length=37, dim=12, chunk_size=4, num_buckets=4, num_hashes=num_hashes, scores=other)
        with pytest.raises(AssertionError):
            assert_same_with_and_without_mask(twin, lambda _, x, mask: sort_and_attend(mixer, x, mask), 37)


@pytest.mark.parametrize("scores", ["lra", "unit"])
@pytest.mark.nightly
def test_other_scores_keep_the_contract(scores):
    assert_keeps_the_contract("reformer", {"scores": scores})


@pytest.mark.parametrize("length", [1, 5, 37, *(pytest.param(n, marks=pytest.mark.nightly) for n in (2, 16))])
@pytest.mark.parametrize(("chunk_size", "num_hashes"), [(1, 1), (3, 1), (4, 3), (10, 2), (40, 2)])
def test_reformer_attends_to_what_was_hashed_beside_it(length, chunk_size, num_hashes):
    mixer = make("reformer", length=length, dim=12, chunk_size=chunk_size, num_buckets=4, num_hashes=num_hashes)

    def reference(mixer, leaf, used):
        q, v = (mixer.projections.to_heads(f(leaf)) for f in (mixer.projections.query, mixer.projections.value))
        allowed = reformer_pattern(mixer, q.detach(), used)
        k = torch.nn.functional.normalize(q, dim=-1)
        return mixer.projections.merge(attention(q, k, v, allowed), used)

    assert_same_with_and_without_mask(mixer, reference, length)
