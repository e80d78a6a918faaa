"""The Long-short Transformer against dense attention to segments and to summaries."""

import pytest
import torch

from attention_zoo.functional import attention
from attention_zoo.variants import transformer_ls
from tests.attention_zoo.variants.helpers import (
    LENGTHS,
    assert_keeps_the_contract,
    assert_same_with_and_without_mask,
    make,
    pairs,
)


@pytest.mark.parametrize("summaries", ["keys", "input"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "rank", "together"), [(2, 3, 1), (4, 2, 8), (64, 5, 64)])
def test_transformer_ls_attends_to_segments_and_summaries(length, window, rank, together, summaries, monkeypatch):
    monkeypatch.setattr(transformer_ls, "_QUERIES", together)
    mixer = make("transformer_ls", length=length, dim=12, window=window, rank=rank, summaries=summaries)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def near(i, j):
        start = i // window * window
        return start - window // 2 <= j < start + window + window // 2

    allowed = torch.cat((pairs(length, near), torch.ones(length, rank, dtype=torch.bool)), dim=1)

    def reference(mixer, leaf, used):
        real = torch.ones(2, length, dtype=torch.bool) if used is None else used
        project, split = mixer.projections, mixer.projections.to_heads
        k, v = project.key(leaf), project.value(leaf)
        averaged = (k, v) if summaries == "keys" else (mixer.norm_local(k), mixer.norm_local(v))
        found = []
        for b in range(2):
            scores = mixer.summary((k if summaries == "keys" else leaf)[b][real[b]])
            weights = scores.softmax(dim=0).unflatten(1, (2, rank))
            found.append([torch.einsum("nhr,nhd->rhd", weights, y[b][real[b]].unflatten(1, (2, 6))) for y in averaged])
        ks, vs = (torch.stack(y).flatten(2) for y in zip(*found, strict=True))
        k, v = (
            torch.cat((split(mixer.norm_local(y)), split(mixer.norm_global(z))), dim=2) for y, z in ((k, ks), (v, vs))
        )
        seen = allowed & torch.cat((real, torch.ones(2, rank, dtype=torch.bool)), dim=1)[:, None]
        return project.merge(attention(split(project.query(leaf)), k, v, seen[:, None]), used)

    assert_same_with_and_without_mask(mixer, reference, length)


@pytest.mark.nightly
def test_summaries_from_the_input_have_a_bias_and_keep_the_contract():
    mixer = make("transformer_ls", length=16, summaries="input")
    assert mixer.summary.bias is not None
    assert make("transformer_ls", length=16).summary.bias is None
    assert_keeps_the_contract("transformer_ls", {"summaries": "input"})
