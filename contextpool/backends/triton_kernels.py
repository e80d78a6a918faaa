# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# ruff: noqa: N803
"""Exact pooling in Triton: Gaussians live in registers, block by block, and tails that weigh nothing are skipped.

Three kernels. Forward, a program owns a block of queries i and walks over the blocks of keys j in their reach. It
weighs keys relative to the query itself. Where weights in reach are too far apart for that, another form of the kernel
keeps a running maximum, so that sums neither overflow nor vanish (the online softmax of M. Milakov and N. Gimelshein,
arXiv:1805.02867). With the logarithm of each row's total in L_i, the backward recomputes

    p_ij = exp(log w_j - log w_i - (i - j)^2 / (2 sigma_i^2) - L_i)

by rows for delta_i = sum_j p_ij (grad_i . x_j) and the gradient of sigma_i, then by columns for the other gradients:

    grad sigma_i = sigma_i^-3 sum_j p_ij (i - j)^2 (grad_i . x_j - delta_i)
    grad x_j     = sum_i p_ij grad_i
    grad log w_j = x_j . grad x_j - sum_i p_ij delta_i

These are the formulas of `backends.causal_dense`, in powers of 2, for which a GPU has an instruction.

Each number is summed by one program, in one order: no atomics, and the same bits every time. Totals are relative to
the query's own weight. Not normalised, L_i is -log w_i and delta_i is zero. Sums are in float32; products of float16
and bfloat16 tokens round p to that type, and those of float32 tokens are not lowered to TensorFloat-32.

Experimental: tested under Triton's interpreter and compiled for compute capabilities 8.0 and 9.0, but **not yet run on
a GPU**, so the sizes of blocks are first guesses, and no speed is claimed. With TRITON_INTERPRET=1 in the environment
before Triton is imported, the kernels run on CPU tensors, slowly. Importing this module imports Triton.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from contextpool.backends.custom_op import Gradients, Saved, register_custom_op

SIZES = {torch.float32: (32, 64, 4), torch.bfloat16: (64, 128, 8), torch.float16: (64, 128, 8)}
"""Dtype of x -> queries, and keys, that a program handles at a time; most features that it sums; its warps.

With these, for compute capabilities 8.0 and 9.0, the compiler spills no registers; float32 in the sizes of the others
spills on 8.0, and bfloat16 with 4 warps does too.
"""
LOG2_E = tl.constexpr(math.log2(math.e))
TRUNCATION = 20.0
"""A key may be skipped where its weight is exp(-20) = 2e-9 of the query's own, or less, whatever the weights are."""
LARGEST_EXPONENT = {torch.float32: 60.0, torch.bfloat16: 60.0, torch.float16: 11.0}
"""Dtype of x -> up to which logarithm of a weight over the query's own its exponential fits, and a sum of many."""


@triton.jit
def _exponents(query, key, slope, self_log_weight, log_weight, CAUSAL: tl.constexpr):
    """Return log2(w_j g_ij / w_i), broadcast over queries and keys, and (i - j)^2; -inf where a key cannot be seen.

    Log-weights of any size enter by their difference alone, which keeps its digits.
    """
    offset = query - key
    square = offset.to(tl.float32) * offset.to(tl.float32)
    exponent = (log_weight - self_log_weight) * LOG2_E - square * slope
    if CAUSAL:
        exponent = tl.where(offset >= 0, exponent, float("-inf"))
    return exponent, square


@triton.jit
def _dot(left, right, total, WIDEN: tl.constexpr):
    """Add a matrix product to a total, in float32 and without rounding to TensorFloat-32."""
    if WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, acc=total, input_precision="ieee")


@triton.jit
def _load_rows(pointer, batch, row, feature, keep, length, dim):
    """Load (rows, features) of (batch, length, dim); zeros where `keep` is false, whatever stands there."""
    start = batch.to(tl.int64) * length * dim
    inside = keep[:, None] & (feature < dim)[None, :]
    return tl.load(pointer + start + row[:, None] * dim + feature[None, :], mask=inside, other=0.0)


@triton.jit
def _load_log_weight(pointer, batch, token, length):
    return tl.load(pointer + batch * length + token, mask=token < length, other=float("-inf"))


@triton.jit
def _self_log_weight(log_weight):
    """Return the queries' own log-weights, 0 for masked ones."""
    return tl.where(log_weight == float("-inf"), 0.0, log_weight)


@triton.jit
def _forward_kernel(
    x, log_weight, slope, count, tiles, spread, y, log_total, length, dim,
    NORMALIZED: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr, SLAB: tl.constexpr, WIDEN: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """Pool one block of queries, one slab of features.

    With `SHIFTED` it pools the blocks that `spread` marks, with a running maximum; without, the others, whose weights
    relative to the query's own neither overflow nor need a maximum.
    """
    block, batch, slab = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    bound = batch.to(tl.int64) * tl.num_programs(0) + block
    if (tl.load(spread + bound) != 0) != SHIFTED:
        return
    query = block * BLOCK + tl.arange(0, BLOCK)
    feature = slab * SLAB + tl.arange(0, SLAB)
    row_slope = tl.load(slope + batch * length + query, mask=query < length, other=0.0)
    row_weight = _load_log_weight(log_weight, batch, query, length)
    real, self_log_weight = row_weight > float("-inf"), _self_log_weight(row_weight)

    # Sums of exp2(exponent - row_max) by query and key of a tile, over the tiles; by query alone if shifted.
    row_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    totals = tl.zeros((BLOCK, BLOCK), tl.float32)
    pooled = tl.zeros((BLOCK, SLAB), tl.float32)
    for step in range(tl.load(count + bound)):
        key = tl.load(tiles + bound * tl.num_programs(0) + step) * BLOCK + tl.arange(0, BLOCK)
        key_weight = _load_log_weight(log_weight, batch, key, length)
        values = _load_rows(x, batch, key, feature, key_weight > float("-inf"), length, dim)
        exponent, _ = _exponents(
            query[:, None], key[None, :], row_slope[:, None], self_log_weight[:, None], key_weight[None, :], CAUSAL
        )
        if SHIFTED:
            # The maximum over this tile too; what was summed so far shrinks to the new shift.
            higher = tl.maximum(row_max, tl.max(exponent, axis=1))
            # Rows that have seen nothing yet keep a row_max of -inf, which must not be subtracted from itself.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            shrink = tl.exp2(row_max - shift)
            p = tl.exp2(exponent - shift[:, None])
            total = total * shrink + tl.sum(p, axis=1)
            pooled = pooled * shrink[:, None]
            row_max = higher
        else:
            # Summed over keys after the loop: within it no thread waits for another.
            p = tl.exp2(exponent)
            totals += p
        pooled = _dot(p.to(values.dtype), values, pooled, WIDEN)

    if not SHIFTED:
        row_max = tl.zeros((BLOCK,), tl.float32)
        total = tl.sum(totals, axis=1)
    # Masked queries that have seen nothing; a real query has seen itself.
    total = tl.where(total == 0.0, 1.0, total)
    if NORMALIZED:
        # `row_total` is L_i in powers of 2.
        pooled = pooled / total[:, None]
        row_total = row_max + tl.log2(total)
    else:
        # In two steps: the factor alone may be too small for float32 where what it multiplies is large.
        half = tl.exp2(0.5 * (row_max + self_log_weight * LOG2_E))[:, None]
        pooled = pooled * half * half
        row_total = -self_log_weight * LOG2_E
    pooled = tl.where(real[:, None], pooled, 0.0)
    inside = (query < length)[:, None] & (feature < dim)[None, :]
    start = batch.to(tl.int64) * length * dim
    tl.store(y + start + query[:, None] * dim + feature[None, :], pooled.to(y.dtype.element_ty), mask=inside)
    if slab == 0:
        # Infinite for masked queries: their p is then zero in the backward.
        row_total = tl.where(real, row_total, float("inf"))
        tl.store(log_total + batch * length + query, row_total, mask=query < length)


@triton.jit
def _rows_kernel(
    grad, x, log_weight, slope, log_total, count, tiles, delta, moment, length, dim,
    NORMALIZED: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr, SLAB: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Sum over the keys of one block of queries: delta, and sigma^3 times the gradient of sigma."""
    block, batch = tl.program_id(0), tl.program_id(1)
    query = block * BLOCK + tl.arange(0, BLOCK)
    row_slope = tl.load(slope + batch * length + query, mask=query < length, other=0.0)
    row_total = tl.load(log_total + batch * length + query, mask=query < length, other=float("inf"))
    self_log_weight = _self_log_weight(_load_log_weight(log_weight, batch, query, length))

    # By query and key of a tile, over the tiles: summed over keys after the loop, as in the forward.
    dot_sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    square_sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    both_sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    bound = batch.to(tl.int64) * tl.num_programs(0) + block
    for step in range(tl.load(count + bound)):
        key = tl.load(tiles + bound * tl.num_programs(0) + step) * BLOCK + tl.arange(0, BLOCK)
        key_weight = _load_log_weight(log_weight, batch, key, length)
        dots = tl.zeros((BLOCK, BLOCK), tl.float32)  # grad_i . x_j, (queries, keys), slab by slab
        for start in range(0, dim, SLAB):
            feature = start + tl.arange(0, SLAB)
            upstream = _load_rows(grad, batch, query, feature, row_total != float("inf"), length, dim)
            values = _load_rows(x, batch, key, feature, key_weight > float("-inf"), length, dim)
            dots = _dot(upstream, tl.trans(values), dots, WIDEN)
        exponent, square = _exponents(
            query[:, None], key[None, :], row_slope[:, None], self_log_weight[:, None], key_weight[None, :], CAUSAL
        )
        p = tl.exp2(exponent - row_total[:, None])
        dot_sums += p * dots
        square_sums += p * square
        both_sums += p * square * dots

    dot_sum, both_sum = tl.sum(dot_sums, axis=1), tl.sum(both_sums, axis=1)
    if NORMALIZED:
        # sum p (i - j)^2 (dot - delta), with delta known only now: taken off at the end.
        both_sum -= dot_sum * tl.sum(square_sums, axis=1)
        tl.store(delta + batch * length + query, dot_sum, mask=query < length)
    tl.store(moment + batch * length + query, both_sum, mask=query < length)


@triton.jit
def _columns_kernel(
    grad, x, log_weight, slope, log_total, delta, count, tiles, grad_x, grad_log_weight, length, dim,
    NORMALIZED: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr, SLAB: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Sum over the queries that reach one block of keys, for one slab of features; log-weights' shares per slab."""
    block, batch, slab = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    key = block * BLOCK + tl.arange(0, BLOCK)
    feature = slab * SLAB + tl.arange(0, SLAB)
    key_weight = _load_log_weight(log_weight, batch, key, length)

    grad_values = tl.zeros((BLOCK, SLAB), tl.float32)
    normalisers = tl.zeros((BLOCK, BLOCK), tl.float32)  # by key and query of a tile, over the tiles
    bound = batch.to(tl.int64) * tl.num_programs(0) + block
    for step in range(tl.load(count + bound)):
        query = tl.load(tiles + bound * tl.num_programs(0) + step) * BLOCK + tl.arange(0, BLOCK)
        row_slope = tl.load(slope + batch * length + query, mask=query < length, other=0.0)
        row_total = tl.load(log_total + batch * length + query, mask=query < length, other=float("inf"))
        upstream = _load_rows(grad, batch, query, feature, row_total != float("inf"), length, dim)
        self_log_weight = _self_log_weight(_load_log_weight(log_weight, batch, query, length))
        exponent, _ = _exponents(
            query[None, :], key[:, None], row_slope[None, :], self_log_weight[None, :], key_weight[:, None], CAUSAL
        )
        # Rounded for the product, and so in the normaliser too: the two nearly cancel where a token sees itself.
        p = tl.exp2(exponent - row_total[None, :]).to(upstream.dtype)
        grad_values = _dot(p, upstream, grad_values, WIDEN)
        if NORMALIZED:
            row_delta = tl.load(delta + batch * length + query, mask=query < length, other=0.0)
            normalisers += p.to(tl.float32) * row_delta[None, :]

    real = key_weight > float("-inf")
    values = _load_rows(x, batch, key, feature, real, length, dim)
    share = tl.sum(values.to(tl.float32) * grad_values, axis=1)
    if NORMALIZED:  # noqa: SIM102 - the outer test is the compiler's, the inner one the program's
        if slab == 0:
            share -= tl.sum(normalisers, axis=1)
    row = slab.to(tl.int64) * tl.num_programs(1) + batch
    tl.store(grad_log_weight + row * length + key, share, mask=key < length)
    inside = (key < length)[:, None] & (feature < dim)[None, :]
    start = batch.to(tl.int64) * length * dim
    pointers = grad_x + start + key[:, None] * dim + feature[None, :]
    tl.store(pointers, grad_values.to(grad_x.dtype.element_ty), mask=inside)


def _forward(x: Tensor, log_weight: Tensor, sigma: Tensor, *, normalized: bool, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled tokens and log2 of each row's total over w_i (of 1 over w_i if not normalised; masked: inf)."""
    batch, length, dim = x.shape
    y, log_total = torch.empty_like(x), torch.empty_like(sigma)
    options = _options(x, normalized=normalized, causal=causal)
    reads, highest = _reads(log_weight, sigma, options["BLOCK"], causal=causal)
    tiles, spread = _listed(reads), (highest > LARGEST_EXPONENT[x.dtype]).to(torch.int32)
    with torch.cuda.device_of(x):
        for shifted in (False, True):  # blocks that are not of this kind end at once
            _forward_kernel[reads.shape[1], batch, triton.cdiv(dim, options["SLAB"])](
                x, log_weight, _slope(sigma), *tiles, spread, y, log_total, length, dim, SHIFTED=shifted, **options
            )
    return y, log_total


def _backward(grad: Tensor, saved: Saved, *, normalized: bool, causal: bool) -> Gradients:
    """Return the gradients of x, log_weight and sigma."""
    x, log_weight, sigma, log_total = saved
    batch, length, dim = x.shape
    options = _options(x, normalized=normalized, causal=causal)
    slabs = triton.cdiv(dim, options["SLAB"])
    reads, _ = _reads(log_weight, sigma, options["BLOCK"], causal=causal)
    slope = _slope(sigma)
    # `delta` stays zero if not normalised; `moment` is sigma^3 times the gradient of sigma; both (batch, length).
    delta, moment, grad_x = torch.zeros_like(sigma), torch.empty_like(sigma), torch.empty_like(x)
    grad_log_weight = sigma.new_empty(slabs, batch, length)  # each slab of features writes its share
    with torch.cuda.device_of(x):
        _rows_kernel[reads.shape[1], batch](
            grad, x, log_weight, slope, log_total, *_listed(reads), delta, moment, length, dim, **_for_rows(options, x)
        )
        _columns_kernel[reads.shape[1], batch, slabs](
            grad, x, log_weight, slope, log_total, delta, *_listed(reads.transpose(1, 2)), grad_x, grad_log_weight,
            length, dim, **options
        )  # fmt: skip
    return grad_x, grad_log_weight.sum(dim=0), moment / sigma**3


def _options(x: Tensor, *, normalized: bool, causal: bool) -> dict[str, Any]:
    """Return the constants that the kernels are compiled for."""
    block, slab, warps = SIZES[x.dtype]
    slab = min(slab, max(16, triton.next_power_of_2(x.shape[2])))
    return {
        "NORMALIZED": normalized,
        "CAUSAL": causal,
        "BLOCK": block,
        "SLAB": slab,
        # For the interpreter, whose products take the bits of bfloat16 for integers. Widening changes no value.
        "WIDEN": x.device.type == "cpu",
        "num_warps": warps,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


def _for_rows(options: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Return the constants for the sums over rows, which keep three numbers for each weight.

    In half precision they spill registers at odd widths, with more than 32 features at a time.
    """
    most = 32 if x.element_size() == 2 and x.shape[2] % 16 else options["SLAB"]
    return options | {"SLAB": min(most, options["SLAB"])}


def _slope(sigma: Tensor) -> Tensor:
    """Return what multiplies (i - j)^2 in the exponent of 2."""
    return 0.5 * math.log2(math.e) / sigma.square()


def _reads(log_weight: Tensor, sigma: Tensor, block: int, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Say which blocks of keys each block of queries has to read, and bound the weights there.

    No weight that block b of queries gives to block t of keys, relative to a query's own, is above the exponential of

        (largest log w in t) - (least log w in b) - (distance of t to b)^2 / (2 (largest sigma in b)^2).

    Returns:
        Whether b reads t, (batch, blocks, blocks), and the highest of these exponents by block, (batch, blocks).
    """
    length, device = log_weight.shape[1], log_weight.device
    pad, hidden = -length % block, log_weight == -torch.inf

    def by_block(values: Tensor, padding: float) -> Tensor:
        return F.pad(values, (0, pad), value=padding).unflatten(1, (-1, block))

    heaviest = by_block(log_weight, -math.inf).amax(dim=2)  # (batch, blocks)
    lightest = by_block(log_weight.masked_fill(hidden, math.inf), math.inf).amin(dim=2)
    widest = by_block(sigma.masked_fill(hidden, 0.0), 0.0).amax(dim=2)
    number = torch.arange(heaviest.shape[1], device=device)
    apart = (number[:, None] - number).abs()
    # Between the nearest tokens of two blocks, (blocks, blocks).
    distance = torch.where(apart == 0, 0, (apart - 1) * block + 1)
    lost = 0.5 * (distance / widest[:, :, None].clamp_min(1e-9)).square()  # (batch, blocks, blocks)
    highest = heaviest[:, None, :] - lightest[:, :, None] - lost
    in_sight = heaviest.cummax(dim=1).values if causal else heaviest.amax(dim=1, keepdim=True)
    # Beyond a distance all that follows is even less; a block that is light is one of many.
    far = (in_sight - lightest)[:, :, None] - lost < -TRUNCATION
    light = highest < -TRUNCATION - math.log(length)
    reads = ~(far | light)  # where a width is not a number, all is read
    if causal:
        reads, highest = reads.tril(), highest.masked_fill(number > number[:, None], -math.inf)
    return reads, highest.amax(dim=2)


def _listed(reads: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles each row of (batch, blocks, blocks) reads, and their numbers in order, before the others'.

    Both int32, (batch, blocks) and (batch, blocks, blocks).
    """
    order = reads.contiguous().sort(dim=2, descending=True, stable=True).indices
    return reads.sum(dim=2, dtype=torch.int32).contiguous(), order.int()


triton_pool = register_custom_op(
    "triton", partial(_forward, causal=False), partial(_backward, causal=False), countable=False
)
triton_causal_pool = register_custom_op(
    "triton_causal", partial(_forward, causal=True), partial(_backward, causal=True), countable=False
)
