"""The Triton backend: on a GPU where there is one, else under Triton's interpreter, in a process of its own.

The interpreter has to be chosen before Triton is imported. So one test runs this file again with TRITON_INTERPRET=1,
and the tests of the kernels are marked `gpu` in any other process.
"""

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contextpool import pool as pool_module
from contextpool.pool import context_pool, resolve_backend
from tests.contextpool import operator_cases as cases

Case = cases.Case
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

MISSING = importlib.util.find_spec("triton") is None
VERSION = (0, 0) if MISSING else tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))

needs_triton = pytest.mark.skipif(MISSING, reason="the package triton is missing")
only_outside = pytest.mark.skipif(INTERPRETED, reason="concerns the process that does not interpret")
directions = pytest.mark.parametrize("causal", [False, True])


def on_kernels(test):
    """Mark a test that runs the kernels: under the interpreter, or else on a GPU."""
    return needs_triton(test) if INTERPRETED else needs_triton(pytest.mark.gpu(test))


def pool(x, log_weight, sigma, mask, **options):
    """Pool on the device under test, and bring the result back."""
    inputs = [value if value is None else value.to(DEVICE) for value in (x, log_weight, sigma, mask)]
    return context_pool(*inputs, backend="triton", **options).to(x.device)


@needs_triton
@only_outside
@pytest.mark.skipif(VERSION < (3, 9), reason="interpreters seen before Triton 3.9 do not run loops with NumPy 2.4")
def test_the_interpreter_agrees():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rs", str(Path(__file__))]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 60, done.stdout


@on_kernels
@directions
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("sigma", ["tiny", "paper", "mixed"])
@pytest.mark.parametrize("length", [1, 17, 75])
def test_matches_the_reference(causal, normalized, sigma, length):
    cases.check_against_truth(pool, Case(length, sigma=sigma, causal=causal, normalized=normalized))


@on_kernels
@directions
@pytest.mark.parametrize(
    "case",
    [
        Case(70, sigma="floor"),
        Case(70, sigma="huge"),
        Case(70, sigma="huge", normalized=False),
        Case(70, sigma="paper", weight="eight decades"),
        Case(70, mask="one empty"),
        Case(70, mask="one empty", normalized=False),
        Case(50, dim=130, batch=1),
        Case(257, sigma="tiny", batch=1, mask="none"),
    ],
    ids=str,
)
def test_extreme_inputs_match_the_reference(causal, case):
    cases.check_against_truth(pool, replace(case, causal=causal))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here, and the interpreter is slow")
@on_kernels
@directions
@pytest.mark.parametrize("sigma", ["tiny", "paper"])
def test_matches_the_reference_at_3001_tokens(causal, sigma):
    cases.check_against_truth(pool, Case(3001, sigma=sigma, causal=causal, batch=1, dim=3, mask="none"))


@on_kernels
@directions
@pytest.mark.parametrize("normalized", [True, False])
def test_masked_tokens_reach_nothing(causal, normalized):
    cases.check_masked_tokens(pool, Case(40, sigma="paper", causal=causal, normalized=normalized))


@on_kernels
@directions
def test_stretches_of_heavy_tokens_are_seen_from_afar(causal):
    """A stretch 10^20 times as heavy shows through tails that a cut at a fixed number of widths would drop."""

    def heavy_stretch(x, log_weight, sigma, mask, **options):
        heavy = torch.arange(x.shape[1]) < 20
        return options.pop("run")(x, log_weight + 46.0 * heavy, sigma, mask, **options)

    case = Case(120, sigma="tiny", causal=causal, mask="none", batch=1)
    actual = cases.run(functools.partial(heavy_stretch, run=pool), case)
    expected = cases.run(functools.partial(heavy_stretch, run=cases.reference_pool), case, torch.float64)
    error = (actual[0] - expected[0]).norm(dim=2) / expected[0].norm(dim=2)
    assert error.max() <= 2e-5
    plain = cases.truth(case)[0]
    changed = (expected[0] - plain).norm(dim=2) / plain.norm(dim=2) > 1e-3
    assert changed[:, 35:].any(), "the stretch reaches further than its neighbours"


@on_kernels
@directions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_summed_in_float32(causal, dtype):
    case = Case(100, sigma="paper", causal=causal, dim=16)
    x, log_weight, sigma, mask, grad = case.inputs()
    leaves = [x.to(dtype).requires_grad_(), log_weight.requires_grad_(), sigma.requires_grad_()]
    y = pool(*leaves, mask, causal=causal)
    assert y.dtype == dtype
    y.backward(grad.to(dtype))
    # The interpreter cuts float32 to bfloat16 instead of rounding it, which doubles the error.
    tolerance = 1e-2 if INTERPRETED and dtype == torch.bfloat16 else 5e-3
    for ours, theirs in zip([y, *(leaf.grad for leaf in leaves)], cases.truth(case), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's maximum
@on_kernels
@directions
def test_a_width_that_is_not_a_number_gives_no_number(causal):
    x, log_weight, sigma, _, _ = Case(50).inputs()
    sigma[0, 7] = torch.nan
    y = pool(x, log_weight, sigma, None, causal=causal)
    assert y[0, 7].isnan().all()
    assert y[1].isfinite().all()


@on_kernels
def test_the_bits_are_the_same_every_time():
    case = Case(75, sigma="paper")
    for once, again in zip(cases.run(pool, case), cases.run(pool, case), strict=True):
        assert torch.equal(once, again)


@on_kernels
def test_strides_do_not_matter():
    def strided(x, log_weight, sigma, mask, **options):
        log_weight, sigma = torch.stack((log_weight, sigma), dim=2).unbind(2)
        return pool(x.transpose(0, 2).contiguous().transpose(0, 2), log_weight, sigma, mask, **options)

    cases.check_against_truth(strided, Case(40, sigma="paper"))


@needs_triton
@only_outside
@pytest.mark.skipif(VERSION < (3, 6), reason="ahead-of-time compilation is called otherwise in old Tritons")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["_forward_kernel", "_rows_kernel", "_columns_kernel"])
def test_the_kernels_compile_without_a_gpu(name, dtype):
    """The compiler accepts each kernel for compute capability 9.0, and shared memory suffices on smaller GPUs too."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from contextpool import triton_pool

    block, slab, warps = triton_pool.SIZES[dtype]
    constants = {"NORMALIZED": True, "CAUSAL": True, "BLOCK": block, "SLAB": slab, "WIDEN": False}
    tokens = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
    types = dict.fromkeys(("x", "y", "grad", "grad_x"), tokens) | dict.fromkeys(("first", "last"), "*i32")
    types |= dict.fromkeys(("length", "dim"), "i32") | dict.fromkeys(constants, "constexpr")
    kernel = getattr(triton_pool, name)
    signature = {argument: types.get(argument, "*fp32") for argument in inspect.signature(kernel.fn).parameters}
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True},
    )
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= 99 * 1024


def test_auto_does_not_take_what_has_never_run_on_a_gpu():
    cuda = torch.device("cuda")
    chosen = {resolve_backend(length, cuda, causal=causal) for length in (1, 3000, 50_000) for causal in (False, True)}
    assert chosen == {"dense", "pyramid", "tree"}


def test_what_triton_cannot_do_is_refused(monkeypatch):
    x, log_weight, sigma, _, _ = Case(10).inputs()
    with pytest.raises(ValueError, match=r"no float64 tokens; use 'dense'"):
        context_pool(x.double(), log_weight, sigma, backend="triton")
    monkeypatch.setattr(pool_module, "_triton_installed", lambda: False)
    with pytest.raises(ValueError, match="needs the package triton"):
        resolve_backend(10, torch.device("cuda"), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs tensors on a CUDA device, got 'cpu'"):
        context_pool(x, log_weight, sigma, backend="triton")


def test_other_backends_leave_triton_alone():
    program = "import sys, contextpool, contextpool.variant; assert 'contextpool.triton_pool' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
