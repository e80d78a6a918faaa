"""Time pooling on grids, forward and backward, in its dense and pyramid forms.

    python -m benchmarks.contextpool_grid --sizes 32,56,96,128 --dim 64

Prints medians of CPU milliseconds of one thread, both forms in turn, and the largest relative error of the pyramid in
outputs and gradients against the dense form in float64 (which is left out above `--exact-up-to` positions).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch import Tensor

from contextpool.backends import grid_pool


def widths(kind: str, rows: int, positions: int) -> Tensor:
    """Draw sigma (1, positions) in rows: up to a tenth of the grid, uniform or log-uniform, or near one."""
    draw = torch.rand(1, positions, dtype=torch.float64)
    if kind == "uniform":
        return 0.1 * rows * (0.05 + 0.9 * draw)
    return 0.5 + draw if kind == "narrow" else torch.exp(math.log(0.3) + draw * math.log(0.1 * rows / 0.3))


def measure(values: tuple[Tensor, ...], grid: tuple[int, int], backend: str) -> tuple[float, list[Tensor]]:
    """Return milliseconds of a forward and backward pass, and the output with the gradients."""
    leaves = [value.clone().requires_grad_() for value in values]
    start = time.process_time()
    y = grid_pool(*leaves, grid=grid, backend=backend)
    gradients = torch.autograd.grad((y * y.detach().cos()).sum(), leaves)
    return 1e3 * (time.process_time() - start), [y.detach(), *gradients]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="28,40,56,72,96,128", help="rows and columns of the square grids")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--exact-up-to", type=int, default=3136)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'grid':>9} {'widths':>12} {'dense ms':>9} {'pyramid ms':>11} {'ratio':>6}  error of the pyramid")
    for size in map(int, options.sizes.split(",")):
        for kind in ("narrow", "log-uniform", "uniform"):
            positions = size * size
            exact = (
                torch.randn(1, positions, options.dim, dtype=torch.float64),
                torch.randn(1, positions, dtype=torch.float64),
                widths(kind, size, positions),
            )
            single = tuple(value.float() for value in exact)
            times: dict[str, list[float]] = {"dense": [], "pyramid": []}
            for _ in range(options.repeats + 1):
                for backend, taken in times.items():
                    milliseconds, results = measure(single, (size, size), backend)
                    taken.append(milliseconds)
            dense, pyramid = (statistics.median(taken[1:]) for taken in times.values())  # the first warms up
            error = ""
            if positions <= options.exact_up_to:
                truth = measure(exact, (size, size), "dense")[1]
                error = f"{max(float((a - b).norm() / b.norm()) for a, b in zip(results, truth, strict=True)):.1e}"
            print(f"{size:4d} x {size:<4d} {kind:>10} {dense:9.1f} {pyramid:11.1f} {dense / pyramid:6.2f}  {error}")


if __name__ == "__main__":
    main()
