# SPDX-License-Identifier: Apache-2.0
"""Checks of shapes, lengths, precision, memory, exact limits and backends."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_zoo.base import SequenceMixer, VariantConfig
from attention_zoo.checks.helpers import (
    EXACT,
    LONG,
    SHORT,
    assert_close,
    build,
    forms,
    make_dims,
    mix,
    scattered_mask,
    suffix_mask,
    tokens,
    weighted_sum,
)
from attention_zoo.registry import VariantSpec, get_variant

SINGLE = 1e-4
"""Largest difference between float32 and float64, relative to the largest entry."""
BACKEND = 1e-6
"""The same between a fast algorithm and the formula in float64: less than float32 loses by rounding in a sum."""
MEMORY_LENGTHS = (512, 1024)
GROWTH = {"linear": (0.0, 1.2), "subquadratic": (0.0, 1.8), "quadratic": (1.8, 2.2)}
"""Allowed exponents of the memory in the length."""


def check_shape(spec: VariantSpec) -> None:
    """The output must have the shape and dtype of the input, and neither input nor mask may be modified."""
    for dtype in (torch.float32, torch.float64):
        mixer = build(spec, dtype=dtype)
        for length in (SHORT, LONG):
            x, mask = tokens(length, dtype=dtype), scattered_mask(length)
            x_before, mask_before = x.clone(), mask.clone()
            out = mix(mixer, x, mask)
            assert out.shape == x.shape, f"the output must be {tuple(x.shape)} like the input, is {tuple(out.shape)}"
            assert out.dtype == dtype, f"the output must be {dtype} like the input, is {out.dtype}"
            assert torch.equal(x, x_before), "forward modifies its input"
            assert torch.equal(mask, mask_before), "forward modifies the mask"


def check_lengths(spec: VariantSpec) -> None:
    """Every length from 1 to `max_length` must work; longer inputs and wrong masks must raise ValueError."""
    max_length = 37
    mixer = build(spec, make_dims(max_length))
    for length in (1, 2, 3, 17, max_length - 1, max_length):
        for mask in (None, suffix_mask(length)):
            out = mix(mixer, tokens(length), mask)
            assert out.shape == tokens(length).shape, f"length {length} gives {tuple(out.shape)}"
            assert out.isfinite().all(), f"length {length} gives NaN or infinity"
    x = tokens(max_length)
    _assert_refused(mixer, tokens(max_length + 1), None, "a sequence longer than max_length")
    _assert_refused(mixer, x, torch.ones(3, max_length - 1, dtype=torch.bool), "a mask of another length")
    _assert_refused(mixer, x, torch.ones(3, max_length), "a mask of numbers")


def _assert_refused(mixer: SequenceMixer, x: Tensor, mask: Tensor | None, what: str) -> None:
    try:
        mixer(x, mask)
    except ValueError:
        return
    raise AssertionError(f"{what} must raise ValueError")


def check_empty_input(spec: VariantSpec) -> None:
    """No sequences, or sequences without tokens, must give an empty output and gradients of zero."""
    for form, dims in forms(spec).items():
        mixer = build(spec, dims)
        for batch, length in ((0, SHORT), (3, 0)):
            x = tokens(length, batch=batch)
            for mask in (None, torch.ones(batch, length, dtype=torch.bool)):
                what = f"{form}: {batch} sequences of {length} tokens"
                try:
                    out = mixer(mixer.transform_stream(x, mask), mask)
                    parameters = list(mixer.parameters())
                    gradients = torch.autograd.grad(out.sum(), parameters) if parameters else ()
                except Exception as error:
                    raise AssertionError(f"{what} give {type(error).__name__}: {error}") from error
                assert out.shape == x.shape, f"{what} give {tuple(out.shape)}"
                assert not any(gradient.any() for gradient in gradients), f"{what} give gradients other than zero"


def check_inference(spec: VariantSpec) -> None:
    """A mixer that is built and runs under `torch.inference_mode` must give what it gives elsewhere."""
    expected = mix(build(spec), tokens(LONG))
    try:
        with torch.inference_mode():
            actual = mix(build(spec), tokens(LONG))
    except Exception as error:
        raise AssertionError(f"under torch.inference_mode: {type(error).__name__}: {error}") from error
    assert_close(actual, expected, "under torch.inference_mode")


def check_dtypes(spec: VariantSpec) -> None:
    """float32 must agree with float64; float16, bfloat16 and autocast to bfloat16 must stay finite."""
    single, double, brain, half = (
        build(spec, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    )
    for length in (SHORT, LONG):
        mask = scattered_mask(length)
        mask[2] = False
        x = tokens(length)
        exact = mix(double, x, mask)[mask]
        assert_close(
            mix(single, x.float(), mask)[mask].double(),
            exact,
            f"length {length}: float32 against float64",
            tolerance=SINGLE,
        )
        low, lowest = mix(brain, x.bfloat16(), mask), mix(half, x.half(), mask)
        assert low.dtype == torch.bfloat16, f"bfloat16 input must give bfloat16, gives {low.dtype}"
        assert lowest.dtype == torch.float16, f"float16 input must give float16, gives {lowest.dtype}"
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            mixed = mix(single, x.float(), mask)
        for out, mixer, name in (
            (low, brain, "bfloat16"),
            (lowest, half, "float16"),
            (mixed, single, "autocast to bfloat16"),
        ):
            assert out.isfinite().all(), f"length {length}: {name} gives NaN or infinity"
            parameters = list(mixer.parameters())
            if parameters:
                gradients = torch.autograd.grad(
                    weighted_sum(out), parameters, allow_unused=True, materialize_grads=True
                )
                finite = all(gradient.isfinite().all() for gradient in gradients)
                assert finite, f"length {length}: {name} gives gradients with NaN or infinity"


def check_memory(spec: VariantSpec) -> None:
    """Memory must grow with the length as claimed, in training with dropout and in every form.

    The check measures the largest tensor of forward and backward, and all tensors that are kept for backward. The
    workspace inside a fused kernel is not seen.
    """
    least, most = GROWTH[spec.traits.memory]
    for causal in (False, True) if spec.traits.causal else (False,):
        dims = make_dims(max(MEMORY_LENGTHS), causal=causal, dropout=0.1)
        mixer = build(spec, dims, dtype=torch.float32).train()
        sizes = [_training_memory(mixer, length) for length in MEMORY_LENGTHS]
        for kind, (small, large) in {k: [size[k] for size in sizes] for k in sizes[0]}.items():
            exponent = math.log(large / small) / math.log(MEMORY_LENGTHS[1] / MEMORY_LENGTHS[0])
            text = f"{'causal' if causal else 'plain'} form: {kind} grows as length^{exponent:.2f}"
            assert exponent <= most, f"{text}, more than the claim memory={spec.traits.memory!r}"
            if kind == "largest tensor":
                assert exponent >= least, f"{text}, less than the claim memory={spec.traits.memory!r}: claim less"


def _training_memory(mixer: SequenceMixer, length: int) -> dict[str, int]:
    """Return the bytes of the largest tensor of one training step, and of all tensors kept for backward."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*mixer.parameters(), *mixer.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = tokens(length, batch=1, dtype=torch.float32).requires_grad_()
    mask = torch.ones(1, length, dtype=torch.bool)
    mask[:, length // 2] = False
    with torch.random.fork_rng(), _LargestTensor(own) as largest:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = weighted_sum(mix(mixer, x, mask))
        torch.autograd.grad(loss, (x, *mixer.parameters()), allow_unused=True)
    return {"largest tensor": largest.nbytes, "memory kept for backward": sum(kept.values())}


class _LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation makes; a view counts as its whole storage."""

    def __init__(self, ignored: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ignored = ignored
        self.nbytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.ignored:
                self.nbytes = max(self.nbytes, leaf.untyped_storage().nbytes())
        return result


def check_exact_limit(spec: VariantSpec) -> None:
    """With the options of `Traits.exact_limit` and the same weights, the variant must compute what `full` does.

    The weights may be those of a mixer that the variant wraps.
    """
    assert spec.traits.exact_limit is not None
    for causal in (False, True) if spec.traits.causal else (False,):
        for length in (SHORT, LONG):
            dims = make_dims(length, causal=causal)
            options = spec.config.from_dict(spec.traits.exact_limit(length))
            full = build(get_variant("full"), dims)
            mixer = spec.build(options, dims).to(device=torch.get_default_device(), dtype=torch.float64).eval()
            weights = full.state_dict()
            holders = [name for name, part in mixer.named_modules() if weights.keys() <= part.state_dict().keys()]
            assert holders, f"no submodule has the parameters of full attention: {', '.join(weights)}"
            mixer.get_submodule(holders[0]).load_state_dict(weights, strict=False)
            text = f"length {length}{', causal' if causal else ''}: at its exact limit, against full attention"
            _assert_same(mixer, full, length, text, buffers=False, holder=holders[0])


def check_backends(spec: VariantSpec) -> None:
    """Every backend of this device must equal "reference", outputs and gradients, with uninitialised memory as NaN."""
    names = backends(spec.config)
    assert "reference" in names, f"one backend must be called reference; there are {', '.join(names)}"
    device = torch.zeros(()).device
    for causal in (False, True) if spec.traits.causal else (False,):
        dims = make_dims(causal=causal)
        reference = build(spec, dims, spec.config.from_dict({"backend": "reference"}))
        for name in names:
            if name == "reference":
                continue
            try:
                mixer = build(spec, dims, spec.config.from_dict({"backend": name}))
                mixer.resolved_backend(device)
            except ValueError:  # refused with a reason: not for this device
                continue
            for length in (SHORT, LONG):
                with _poisoned_memory():
                    text = f"length {length}: backend {name} against reference"
                    _assert_same(mixer, reference, length, text, tolerance=BACKEND)


def backends(config: type[VariantConfig]) -> tuple[str, ...]:
    """Return the choices of the option `backend`; empty for a variant without it."""
    return typing.get_args(typing.get_type_hints(config).get("backend"))


def _assert_same(
    mixer: SequenceMixer,
    expected: SequenceMixer,
    length: int,
    what: str,
    *,
    buffers: bool = True,
    holder: str = "",
    tolerance: float = EXACT,
) -> None:
    """Assert equal outputs and equal gradients of the input and of the parameters that both have.

    The parameters of `mixer` are those of its submodule `holder`: a mixer may wrap another one.
    """
    if buffers:
        mixer.load_state_dict(expected.state_dict())
    mask = scattered_mask(length)
    mask[2] = False
    for used in (None, mask):
        pairs = []
        for each, part in ((mixer, mixer.get_submodule(holder)), (expected, expected)):
            x = tokens(length).requires_grad_()
            named = {n: p for n, p in part.named_parameters() if n in dict(expected.named_parameters())}
            out = mix(each, x, used)
            real = torch.ones(x.shape[:2], dtype=torch.bool) if used is None else used
            gradients = torch.autograd.grad(
                weighted_sum(out.sin(), real), (x, *named.values()), allow_unused=True, materialize_grads=True
            )
            pairs.append({"output": out[real]} | dict(zip(("input gradient", *named), gradients, strict=True)))
        # One scale for all: the gradient of a key's bias is nothing but rounding.
        scale = max(float(value.detach().abs().max()) for value in pairs[1].values())
        for name, value in pairs[1].items():
            assert_close(pairs[0][name], value, f"{what}: {name}", scale=scale, tolerance=tolerance)


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill the tensors that `torch.empty` and its relatives return with NaN, so that unwritten entries show."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            made = make(*args, **kwargs)
            return made.fill_(math.nan) if made.is_floating_point() else made

        return poisoned

    with (
        patch.object(torch, "empty", poison(torch.empty)),
        patch.object(torch, "empty_like", poison(torch.empty_like)),
        patch.object(Tensor, "new_empty", poison(Tensor.new_empty)),
    ):
        yield
