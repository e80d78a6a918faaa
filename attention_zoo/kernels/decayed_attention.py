# SPDX-License-Identifier: Apache-2.0
"""Linear attention whose weights decay with the tokens in between: in chunks, and written out.

    o_i = Σ_j w_ij (q_i·k_j) v_j,    w_ij = λ_{j+1} ... λ_i for j <= i,    w_ij = μ_i ... μ_{j-1} for j > i.

This is the sum of two recurrences, S_i = λ_i S_{i-1} + k_i v_iᵀ and the same with μ from the other end, in which a
token counts itself once. The decays λ towards the past and μ towards the future may be the same.

Within a chunk the tokens meet directly. What lies in other chunks is read from the state at the border. All exponents
are sums of logarithms of decays and never positive, so that nothing overflows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUP = 16
"""Chunks whose states are computed by one product of matrices."""


def decayed_attention(
    q: Tensor, k: Tensor, v: Tensor, past: Tensor, future: Tensor | None = None, *, chunk: int
) -> Tensor:
    """Compute the sums chunk by chunk; time and memory are linear in the length.

    The number of operations in a row grows with the logarithm of the length.

    Args:
        q: (batch, num_heads, length, key_dim).
        k: (batch, num_heads, length, key_dim).
        v: (batch, num_heads, length, value_dim).
        past: log λ, at most 0, (batch, num_heads, length).
        future: log μ, at most 0, like `past`; None leaves j > i out.
        chunk: Tokens that meet directly.

    Returns:
        (batch, num_heads, length, value_dim).
    """
    length = q.shape[2]
    chunk = min(chunk, length)
    # (batch, num_heads, chunks, chunk, features); zeros at the end add nothing and do not decay.
    q, k, v = (split_chunks(each, chunk) for each in (q, k, v))
    past = split_chunks(past[..., None], chunk)[..., 0]
    future = None if future is None else split_chunks(future[..., None], chunk)[..., 0]
    near = ((q @ k.transpose(-2, -1)) * decay_weights(past, future)) @ v
    since = past.cumsum(dim=-1)  # from the start of the chunk up to and with a token
    whole = since[..., -1]  # (batch, num_heads, chunks)
    # The decay from j to i in a later chunk: from j to the end of its chunk, the chunks between, up to and with i.
    states = _states((k * (whole[..., None] - since).exp()[..., None]).transpose(-2, -1) @ v, whole)
    sums = near + (q * since.exp()[..., None]) @ states
    if future is not None:
        # From the other end: without j, but with i.
        until = future.cumsum(dim=-1)
        before, whole = until - future, until[..., -1]
        written = (k * before.exp()[..., None]).transpose(-2, -1) @ v
        states = _states(written.flip(2), whole.flip(2)).flip(2)
        sums = sums + (q * (whole[..., None] - before).exp()[..., None]) @ states
    return sums.flatten(2, 3)[:, :, :length]


def decay_weights(past: Tensor, future: Tensor | None = None) -> Tensor:
    """Write out w_ij: (..., length) gives (..., length, length), with zeros for j > i without a decay for them."""
    since = past.cumsum(dim=-1)
    apart = since[..., :, None] - since[..., None, :]
    later = torch.ones(apart.shape[-2:], dtype=torch.bool, device=apart.device).triu(1)
    if future is None:
        return apart.masked_fill(later, -torch.inf).exp()
    before = future.cumsum(dim=-1) - future
    return torch.where(later, before[..., None, :] - before[..., :, None], apart).exp()


def split_chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut (batch, num_heads, length, features) into (batch, num_heads, chunks, chunk, features), zeros at the end."""
    missing = -x.shape[2] % chunk
    return (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (-1, chunk))  # padding by nothing would copy


def _states(written: Tensor, log_kept: Tensor) -> Tensor:
    """Return the state before each chunk of state = exp(log_kept) * state + written, which starts from zero.

    Chunks of one group see each other through a matrix of decays. Groups are to this function what chunks are.

    Args:
        written: (batch, num_heads, chunks, key_dim, value_dim).
        log_kept: (batch, num_heads, chunks).
    """
    count, group = written.shape[2], min(_GROUP, written.shape[2])
    # (batch, num_heads, groups, group, key_dim * value_dim) and (batch, num_heads, groups, group)
    flat = split_chunks(written.flatten(3), group)
    steps = split_chunks(log_kept[..., None], group)[..., 0]
    since = steps.cumsum(dim=-1)
    before = since - steps
    # From the end of a chunk to the start of a later one: (batch, num_heads, groups, group, group)
    earlier = torch.ones(group, group, dtype=torch.bool, device=flat.device).tril(-1)
    between = (before[..., :, None] - since[..., None, :]).masked_fill(~earlier, -torch.inf).exp()
    states = between @ flat
    if count > group:
        whole = since[..., -1]
        added = (whole[..., None] - since).exp()[..., None, :] @ flat  # (batch, num_heads, groups, 1, features)
        states = states + before.exp()[..., None] * _states(added, whole)
    return states.flatten(2, 3)[:, :, :count].unflatten(3, written.shape[3:])
