"""Fused attention as CUDA has it: which calls a fused kernel takes, and the same result on the CPU."""

from __future__ import annotations

import torch


def why_unfused(q, k, v, mask) -> str:
    """Return why no fused kernel takes this call on compute capability 8.0 and up; empty if one does.

    The conditions are those of torch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """
    half = q.dtype in (torch.float16, torch.bfloat16)
    if half and mask is None and q.shape[-1] == v.shape[-1] <= 256:
        return ""  # flash attention
    multiple = 8 if half else 4
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {q.dtype}"
    if any(each.dim() != 4 for each in (q, k, v)):
        return "not four axes"
    if q.shape[-1] % multiple or v.shape[-1] % multiple:
        return f"head_dim {q.shape[-1]}, {v.shape[-1]}: not multiples of {multiple}"
    if any(each.storage_offset() % multiple for each in (q, k, v)):
        return "a storage that does not begin at a multiple"
    strides = [
        stride for each in (q, k, v) for size, stride in zip(each.shape[:3], each.stride()[:3], strict=True) if size > 1
    ]
    if any(stride % multiple for stride in strides):
        return "strides that are not multiples"
    if any(each.stride(-1) != 1 for each in (q, k, v)):
        return "a last axis that is not contiguous"
    return "empty" if 0 in (*q.shape, *k.shape) else ""


def _weights(q, k, bias, causal, scale):
    """Return softmax(scores) and the logarithm of its sums."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.to(wide).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -torch.inf
        )
    return scores.softmax(-1), scores.logsumexp(-1)


def _kept(weights, rate, seed):
    if rate == 0.0:
        return torch.ones_like(weights)
    draw = None if weights.is_meta else torch.Generator().manual_seed(int(seed))
    return (torch.rand(weights.shape, generator=draw, device=weights.device) >= rate).to(weights.dtype) / (1 - rate)


def _forward(q, k, v, bias, compute_log_sums, rate=0.0, causal=False, *, scale=None):
    weights, log_sums = _weights(q, k, bias, causal, scale)
    seed = (
        torch.randint(2**62, (), device=q.device) if rate > 0 else torch.zeros((), dtype=torch.int64, device=q.device)
    )
    out = ((weights * _kept(weights, rate, seed)) @ v.to(weights.dtype)).to(q.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2), log_sums, seed, torch.zeros_like(seed)


def _backward(grad, q, k, v, bias, out, log_sums, seed, offset, rate, wanted, causal=False, *, scale=None):
    weights, _ = _weights(q, k, bias, causal, scale)
    kept, grad = _kept(weights, rate, seed), grad.to(weights.dtype)
    grad_v = (weights * kept).transpose(-2, -1) @ grad
    grad_weights = (grad @ v.to(weights.dtype).transpose(-2, -1)) * kept
    grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    grad_q = grad_scores @ k.to(weights.dtype) * factor
    grad_k = grad_scores.transpose(-2, -1) @ q.to(weights.dtype) * factor
    grad_bias = grad_scores.to(q.dtype) if bias is not None and wanted[3] else None
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias


KERNELS = {
    "_scaled_dot_product_efficient_attention": _forward,
    "_scaled_dot_product_efficient_attention_backward": _backward,
}
