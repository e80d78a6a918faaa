"""What concerns the Triton backend alone. `test_all_backends` runs it with all others, on a GPU or interpreted."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from contextpool import functional as pool_module
from contextpool.functional import context_pool, resolve_backend
from tests.contextpool.backends import cases

Case = cases.Case
ROOT = Path(__file__).parents[3]

kernels = cases.over([form for form in cases.FORMS if form.backend == "triton"])


@kernels
def test_stretches_of_heavy_tokens_are_seen_from_afar(form):
    """A stretch 10^20 times as heavy shows through tails that a cut at a fixed number of widths would drop."""

    def heavy_stretch(x, log_weight, sigma, mask, **options):
        heavy = torch.arange(x.shape[1]) < 20
        return options.pop("run")(x, log_weight + 46.0 * heavy, sigma, mask, **options)

    case = Case(120, sigma="tiny", causal=form.causal, mask="none", batch=1)
    actual = cases.run(functools.partial(heavy_stretch, run=form.pool), case)
    expected = cases.run(functools.partial(heavy_stretch, run=cases.reference_pool), case, torch.float64)
    error = (actual[0] - expected[0]).norm(dim=2) / expected[0].norm(dim=2)
    assert error.max() <= 2e-5
    plain = cases.truth(case)[0]
    changed = (expected[0] - plain).norm(dim=2) / plain.norm(dim=2) > 1e-3
    assert changed[:, 35:].any(), "the stretch reaches further than its neighbours"


COMPILE = """
import inspect, json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from contextpool.backends import triton_kernels

for dtype, tokens in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16")):
    block, slab, warps = triton_kernels.SIZES[dtype]
    constants = {"NORMALIZED": True, "CAUSAL": True, "BLOCK": block, "SLAB": slab, "WIDEN": False}
    types = dict.fromkeys(("x", "y", "grad", "grad_x"), tokens) | dict.fromkeys(("first", "last"), "*i32")
    types |= dict.fromkeys(("length", "dim"), "i32") | dict.fromkeys(constants, "constexpr")
    for kernel in (triton_kernels._forward_kernel, triton_kernels._rows_kernel, triton_kernels._columns_kernel):
        signature = {argument: types.get(argument, "*fp32") for argument in inspect.signature(kernel.fn).parameters}
        compiled = triton.compile(
            ASTSource(kernel, signature, constexprs=constants),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True},
        )
        print(json.dumps([len(compiled.asm["cubin"]), compiled.metadata.shared]))
"""


@pytest.mark.skipif(not cases.TRITON, reason="the package triton is missing")
@pytest.mark.skipif(
    bool(cases.TRITON) and cases.TRITON < (3, 6), reason="ahead-of-time compilation is called otherwise in old Tritons"
)
def test_the_kernels_compile_without_a_gpu():
    """The compiler accepts each kernel for compute capability 9.0, and shared memory suffices on smaller GPUs too.

    In a process of its own, because this one may have chosen the interpreter.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(compiled) == 6
    assert all(size > 0 and shared <= 99 * 1024 for size, shared in compiled)


def test_auto_does_not_take_what_has_never_run_on_a_gpu():
    cuda = torch.device("cuda")
    chosen = {resolve_backend(length, cuda, causal=causal) for length in (1, 3000, 50_000) for causal in (False, True)}
    assert chosen == {"dense", "pyramid", "tree"}


def test_what_triton_cannot_do_is_refused(monkeypatch):
    x, log_weight, sigma, _, _ = Case(10).inputs()
    with pytest.raises(ValueError, match=r"no float64 tokens; use 'dense'"):
        context_pool(x.double(), log_weight, sigma, backend="triton")
    monkeypatch.setattr(pool_module, "_TRITON_INSTALLED", False)
    with pytest.raises(ValueError, match="needs the package triton"):
        resolve_backend(10, torch.device("cuda"), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs tensors on a CUDA device, got 'cpu'"):
        context_pool(x, log_weight, sigma, backend="triton")
