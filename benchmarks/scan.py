"""Forms of the linear scan h_t = a_t h_{t-1} + b_t, forward and backward, on CPU.

    python -m benchmarks.scan [--length 4096] [--tokens 16384] [--dim 128] [--repeats 5]

Prints the least time of a step of each form, real and complex: a loop over the tokens, log(length) doublings of the
step (Hillis and Steele), torch's associative scan, and `attention_zoo.kernels.scan` with chunks of several sizes. For
forms that keep what they compute, the backward pass is what autograd makes of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from attention_zoo.kernels import scan

Scan = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16384, help="batch times length")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{arguments}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    shape = (max(1, arguments.tokens // arguments.length), arguments.length, arguments.dim)
    forms: dict[str, tuple[Scan, int]] = {f"linear_scan, chunks of {size}": (scan.linear_scan, size) for size in SIZES}
    forms |= {name: (form, scan._CHUNK) for name, form in OTHERS.items()}
    for dtype in (torch.float32, torch.complex64):
        torch.manual_seed(0)
        a, b = torch.rand(shape).to(dtype).requires_grad_(), torch.randn(shape, dtype=dtype, requires_grad=True)
        for name, (form, size) in forms.items():
            with patch.object(scan, "_CHUNK", size):
                seconds = min(timed_step(form, a, b) for _ in range(arguments.repeats))
            print(f"{dtype!s:<16}{name:<28}{seconds * 1e3:>8.1f} ms", flush=True)


def timed_step(form: Scan, a: Tensor, b: Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    out = form(a, b)
    torch.autograd.grad(out, (a, b), torch.ones_like(out))
    return time.perf_counter() - start


def loop(a: Tensor, b: Tensor) -> Tensor:
    """Go on token by token."""
    states = [b[:, 0]]
    for factor, added in zip(a[:, 1:].unbind(1), b[:, 1:].unbind(1), strict=True):
        states.append(torch.addcmul(added, factor, states[-1]))
    return torch.stack(states, dim=1)


def doublings(a: Tensor, b: Tensor) -> Tensor:
    """Join each token with the one 1, 2, 4, ... places before it."""
    step = 1
    while step < b.shape[1]:
        b = torch.cat((b[:, :step], torch.addcmul(b[:, step:], a[:, step:], b[:, :-step])), dim=1)
        a = torch.cat((a[:, :step], a[:, step:] * a[:, :-step]), dim=1)
        step *= 2
    return b


def associative(a: Tensor, b: Tensor) -> Tensor:
    """Use torch's own scan."""

    def join(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return first[0] * second[0], torch.addcmul(second[1], second[0], first[1])

    states: Tensor = associative_scan(join, (a, b), dim=1, combine_mode="generic")[1]
    return states


SIZES = (8, 16, 32, 64)
OTHERS: dict[str, Scan] = {"torch's associative_scan": associative, "loop over tokens": loop, "doublings": doublings}


if __name__ == "__main__":
    main()
