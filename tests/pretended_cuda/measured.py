"""Run `benchmarks.gpu` on the pretended device, at tiny sizes.

python -m tests.pretended_cuda.measured OUTPUT VARIANTS
"""

import sys
from pathlib import Path

import torch

from benchmarks import gpu
from tests.pretended_cuda.device import pretended_cuda

if __name__ == "__main__":
    torch.set_num_threads(1)
    gpu.TESTS = ["-n1", "tests/contextpool/test_on_gpu.py"]
    gpu.WARM_STEPS = gpu.STEPS = gpu.PROFILED_STEPS = gpu.POOLING_REPEATS = 1
    gpu.WIDTHS = ("mixed",)
    sizes = ["--length", "48", "--batch", "2", "--pool-lengths", "24"]
    with pretended_cuda(Path(__file__).parents[2]):
        gpu.main(["--output", sys.argv[1], "--attn", sys.argv[2], *sizes, *sys.argv[3:]])
