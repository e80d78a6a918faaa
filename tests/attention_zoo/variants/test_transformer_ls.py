"""The Long-short Transformer against dense attention to segments and to summaries."""

import pytest
import torch

from attention_zoo.functional import attention
from attention_zoo.variants import transformer_ls
from tests.attention_zoo.variants.helpers import LENGTHS, assert_same_with_and_without_mask, make, pairs


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "rank", "together"), [(2, 3, 1), (4, 2, 8), (64, 5, 64)])
def test_transformer_ls_attends_to_segments_and_summaries(length, window, rank, together, monkeypatch):
    monkeypatch.setattr(transformer_ls, "_QUERIES", together)
    mixer = make("transformer_ls", length=length, dim=12, window=window, rank=rank)

    def near(i, j):
        start = i // window * window
        return start - window // 2 <= j < start + window + window // 2

    allowed = torch.cat((pairs(length, near), torch.ones(length, rank, dtype=torch.bool)), dim=1)

    def reference(mixer, leaf, used):
        real = torch.ones(2, length, dtype=torch.bool) if used is None else used
        project, split = mixer.projections, mixer.projections.to_heads
        k, v = project.key(leaf), project.value(leaf)
        summaries = []
        for b in range(2):
            weights = mixer.summary(k[b][real[b]]).softmax(dim=0).unflatten(1, (2, rank))
            summaries.append(
                [torch.einsum("nhr,nhd->rhd", weights, y[b][real[b]].unflatten(1, (2, 6))) for y in (k, v)]
            )
        ks, vs = (torch.stack(y).flatten(2) for y in zip(*summaries, strict=True))
        k, v = (
            torch.cat((split(mixer.norm_local(y)), split(mixer.norm_global(z))), dim=2) for y, z in ((k, ks), (v, vs))
        )
        seen = allowed & torch.cat((real, torch.ones(2, rank, dtype=torch.bool)), dim=1)[:, None]
        return project.merge(attention(split(project.query(leaf)), k, v, seen[:, None]), used)

    assert_same_with_and_without_mask(mixer, reference, length)
