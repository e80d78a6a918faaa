"""Rotary positions."""

import torch

from attention_zoo.projections import Rotary


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(8, 12).double()
    queries, keys = rotary(q.expand(-1, -1, 12, -1)), rotary(k.expand(-1, -1, 12, -1))
    torch.testing.assert_close(queries.norm(dim=-1), q.norm(dim=-1).expand(-1, -1, 12), rtol=1e-6, atol=0)
    scores = (queries @ keys.transpose(-2, -1))[0, 0]
    by_distance = [scores.diagonal(offset) for offset in range(-11, 12)]
    for diagonal in by_distance:  # the tables are float32
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert torch.stack([diagonal[0] for diagonal in by_distance]).std() > 0.1
