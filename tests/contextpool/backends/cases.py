"""Backends, inputs and checks for the pooling operator, shared by its test files. Checks take the operator, so that a
broken one can be put in its place."""

import functools
import importlib.metadata
import importlib.util
import math
import os
from dataclasses import dataclass, replace

import pytest
import torch

from contextpool.functional import context_pool
from contextpool.reference import reference_pool

TRITON = importlib.util.find_spec("triton") and tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))
"""Its version, None where it is missing."""


@dataclass(frozen=True)
class Form:
    """A backend, one way or two, on a device."""

    backend: str
    causal: bool
    device: str = "cpu"

    def __str__(self):
        return f"{self.backend}-{'causal' if self.causal else 'two-sided'}-{self.device}"

    @property
    def interpreted(self):
        """Whether Triton's interpreter runs the kernels: slowly, so sequences are short there."""
        return self.backend == "triton" and self.device == "cpu"

    def pool(self, *inputs, **options):
        """Pool on the device, and bring the result back."""
        there = [value if value is None else value.to(self.device) for value in inputs]
        return context_pool(*there, backend=self.backend, **options).to(inputs[0].device)

    def short(self, case, at_most=75):
        """Return the case for this form."""
        return replace(case, causal=self.causal, length=min(case.length, at_most) if self.interpreted else case.length)

    def marks(self):
        """List what may keep this form from being tested here; under the interpreter it is tested nightly."""
        return [*self.reasons(), *([pytest.mark.nightly] if self.interpreted else [])]

    def reasons(self):
        """List what this form needs to be tested, as marks that skip or select."""
        marks = [pytest.mark.gpu] if self.device == "cuda" else []
        if self.backend == "triton":
            marks.append(pytest.mark.skipif(not TRITON, reason="the package triton is missing"))
        if self.interpreted:
            chosen = os.environ.get("TRITON_INTERPRET") == "1"
            marks.append(pytest.mark.skipif(not chosen, reason="a CUDA device runs these kernels, not the interpreter"))
            old = bool(TRITON) and TRITON < (3, 7)
            reason = "the interpreters of Triton before 3.7 do not run loops with NumPy 2.4"
            marks.append(pytest.mark.skipif(old, reason=reason))
        return marks


FORMS = [
    Form(backend, causal, device)
    for device in ("cpu", "cuda")
    for backend, causal in [
        ("reference", False),
        ("reference", True),
        ("dense", False),
        ("dense", True),
        ("pyramid", False),
        ("tree", True),
        ("triton", False),
        ("triton", True),
    ]
]
"""Everything that `context_pool` can be asked for; a test compares the list with what the operator accepts."""


def over(forms):
    """Parametrise a test over forms, each with the reasons for which it may be skipped."""
    return pytest.mark.parametrize("form", [pytest.param(form, id=str(form), marks=form.marks()) for form in forms])


@dataclass(frozen=True)
class Case:
    """A name for random inputs, from which they are drawn."""

    length: int
    sigma: str = "mixed"
    weight: str = "normal"
    mask: str = "ragged"
    batch: int = 2
    dim: int = 6
    causal: bool = False
    normalized: bool = True

    def inputs(self):
        draw = torch.Generator().manual_seed(self.length)
        shape = (self.batch, self.length)
        uniform = torch.rand(shape, generator=draw)
        sigma = {
            "tiny": lambda: 0.5 + 3.5 * uniform,
            "paper": lambda: 0.1 * self.length * (0.05 + 0.9 * uniform),
            "mixed": lambda: 0.5 * torch.exp(uniform * math.log(max(2.0, 0.2 * self.length))),
            "floor": lambda: torch.full(shape, 0.05),
            "huge": lambda: torch.full(shape, 1e6),
        }[self.sigma]()
        log_weight = {
            "normal": lambda: torch.randn(shape, generator=draw),
            "eight decades": lambda: -8 * math.log(10.0) * torch.rand(shape, generator=draw),
        }[self.weight]()
        mask = torch.rand(shape, generator=draw) > 0.1
        mask[-1, math.ceil(self.length / 2) :] = False
        mask[:, 0] = True
        if self.mask == "one empty":
            mask[0] = False
        x, grad = (torch.randn(*shape, self.dim, generator=draw) for _ in range(2))
        return x, log_weight, sigma, None if self.mask == "none" else mask, grad


def run(pool, case, dtype=torch.float32, **options):
    """Return y and the gradients of x, log_weight and sigma."""
    x, log_weight, sigma, mask, grad = case.inputs()
    leaves = [value.to(dtype).requires_grad_() for value in (x, log_weight, sigma)]
    y = pool(*leaves, mask, causal=case.causal, normalized=case.normalized, **options)
    y.backward(grad.to(dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@functools.lru_cache(maxsize=64)
def truth(case):
    return run(reference_pool, case, torch.float64)


def check_against_truth(pool, case):
    """Outputs and gradients agree with the float64 reference, in norm and in the worst row."""
    actual, expected = run(pool, case), truth(case)
    # Where a token sees little but itself, its weight's gradient is the difference of two terms of this size.
    terms = (case.inputs()[0] * expected[1]).sum(dim=2).norm()
    floors = {"y": 0.0, "x": 0.0, "log_weight": 1e-6 * terms, "sigma": 1e-12}
    tolerances = {"y": 1e-6, "x": 1e-6, "log_weight": 1e-6, "sigma": 1e-5}
    for name, ours, theirs in zip(floors, actual, expected, strict=True):
        assert ours.isfinite().all(), f"{name} is not finite"
        error, size = (ours - theirs).norm(), theirs.norm()
        assert error <= tolerances[name] * size + floors[name], f"{name}: error {error:.2e} of {size:.2e}"
    rows = (actual[0] - expected[0]).norm(dim=2) / expected[0].norm(dim=2).clamp_min(1e-2)
    assert rows.max() <= 2e-5, f"worst row: {rows.max():.2e}"


def check_masked_tokens(pool, case):
    """Nothing at a masked position reaches a result, not even a value that is not a number."""
    mask = case.inputs()[3]
    expected = run(pool, case)

    def spoiled(x, log_weight, sigma, mask, **options):
        hidden = (~mask)[:, :, None]
        x, log_weight, sigma = x.masked_fill(hidden, torch.nan), log_weight.masked_fill(~mask, 50.0), sigma + 3 * ~mask
        return pool(x, log_weight, sigma, mask, **options)

    actual = run(spoiled, case)
    for name, ours, theirs in zip(("y", "x", "log_weight", "sigma"), actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert (theirs[~mask] == 0).all(), f"{name} is not zero at a masked token"


WIDE_LENGTH = 700
PROFILES = {
    "rising": lambda place: 300 * place,
    "falling": lambda place: -300 * place,
    "hill": lambda place: 300 * (1 - (2 * place - 1).abs()),
    "valley": lambda place: 300 * (2 * place - 1).abs(),
    "steps": lambda place: 300 * ((7 * place).floor() % 2),
    "spikes": lambda place: 15.0 * ((WIDE_LENGTH * place).round() % 97 == 5),
}
"""What is added to the log-weights, by place in the sequence from 0 to 1."""


def over_a_wide_range(pool, name):
    """Pool with a profile added to the log-weights, rounded to float32 in every precision, so that inputs agree."""

    def wide(x, log_weight, sigma, mask, **options):
        shift = PROFILES[name](torch.linspace(0, 1, WIDE_LENGTH))
        total = (log_weight.detach().float() + shift).to(log_weight)
        return pool(x, total + (log_weight - log_weight.detach()), sigma, mask, **options)

    return wide


def _wide_case(sigma):
    return Case(WIDE_LENGTH, sigma=sigma, causal=True)


@functools.cache
def _wide_truth(name, sigma):
    return run(over_a_wide_range(reference_pool, name), _wide_case(sigma), torch.float64)


def _wide_errors(pool, name, sigma, dtype=torch.float32):
    """Return relative errors of y and the gradients of x, log_weight and sigma, and that of the worst row of y."""
    actual = run(over_a_wide_range(pool, name), _wide_case(sigma), dtype)
    expected = _wide_truth(name, sigma)
    norms = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(actual, expected, strict=True)]
    rows = (actual[0] - expected[0]).norm(dim=2) / expected[0].norm(dim=2).clamp_min(1e-2)
    return [*norms, float(rows.max())]


def check_wide_range(pool, name, sigma):
    # In float32 an exponent of 300 is rounded by 2e-5 of a weight; in float64 only the tree's own error is left.
    single, double = (_wide_errors(pool, name, sigma, dtype) for dtype in (torch.float32, torch.float64))
    assert max(single[:3]) <= 3e-5, single
    assert single[3] <= 1e-3, single
    assert max(double[:4]) <= 3e-6, double
    assert double[4] <= 2e-5, double
