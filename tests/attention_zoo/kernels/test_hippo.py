"""HiPPO-N against the matrix that it is made of."""

import pytest
import torch

from attention_zoo.kernels.hippo import hippo_normal


@pytest.mark.parametrize("size", [2, 6, 64])
def test_the_eigenvectors_are_those_of_hippo_legs_and_a_matrix_of_rank_one(size):
    place = torch.arange(size, dtype=torch.float64)
    legs = -torch.outer((2 * place + 1).sqrt(), (2 * place + 1).sqrt()).tril(-1) - torch.diag(place + 1)
    normal = legs + torch.outer((place + 0.5).sqrt(), (place + 0.5).sqrt())
    values, vectors = hippo_normal(size)
    assert values.shape == (size // 2,)
    assert (values.imag.diff() > 0).all()
    assert (values.imag > 0).all()
    torch.testing.assert_close(normal.to(vectors.dtype) @ vectors, vectors * values)
    both = torch.cat((vectors, vectors.conj()), dim=1)
    torch.testing.assert_close(both.mH @ both, torch.eye(size, dtype=both.dtype))
