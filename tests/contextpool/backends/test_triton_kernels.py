"""What concerns the Triton backend alone. `test_all_backends` runs it with all others, on a GPU or interpreted."""

import functools
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from contextpool import functional as pool_module
from contextpool.functional import context_pool, resolve_backend
from tests.contextpool.backends import cases, compiled

Case, Form = cases.Case, cases.Form
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


INTERPRETED = [Form("triton", causal) for causal in (False, True)]
interpreted = pytest.mark.parametrize(
    "form", [pytest.param(form, id=str(form), marks=form.reasons()) for form in INTERPRETED]
)
"""In every run of the tests, but short. The longer tests under the interpreter are nightly ones."""


@interpreted
def test_odd_lengths_and_widths_and_masks_with_holes_match_the_reference(form):
    cases.check_against_truth(form.pool, Case(71, dim=17, batch=1, causal=form.causal))
    case = Case(41, sigma="paper", dim=3, causal=form.causal, normalized=False, mask="one empty")
    cases.check_against_truth(form.pool, case)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_matches_the_reference(form, dtype):
    def rounded(x, *inputs, **options):
        return form.pool(x.to(dtype), *inputs, **options).to(x.dtype)

    case = Case(75, dim=16, batch=1, sigma="paper", causal=form.causal)
    # The interpreter cuts float32 to bfloat16 instead of rounding it, which doubles the error.
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3
    for ours, theirs in zip(cases.run(rounded, case), cases.truth(case), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def heavy_in_the_middle(pool, weight):
    """Pool with ten tokens that weigh exp(weight) times as much."""

    def heavy(x, log_weight, sigma, mask, **options):
        middle = (torch.arange(x.shape[1]) - 60).abs() <= 5
        return pool(x, log_weight + weight * middle, sigma, mask, **options)

    return heavy


def check_heavy(form, weight, normalized):
    case = Case(100, sigma="tiny", mask="none", batch=1, causal=form.causal, normalized=normalized)
    actual = cases.run(heavy_in_the_middle(form.pool, weight), case)
    expected = cases.run(heavy_in_the_middle(cases.reference_pool, weight), case, torch.float64)
    for ours, theirs in zip(actual[:3], expected, strict=False):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()  # a logarithm of 80 is rounded by 4e-6 of a weight
    assert actual[3].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, at the overflow that is provoked
@interpreted
@pytest.mark.parametrize(("weight", "normalized"), [(55.0, True), (80.0, False), (300.0, True)])
def test_weights_far_apart_take_the_running_maximum(monkeypatch, form, weight, normalized):
    check_heavy(form, weight, normalized)
    if weight == 300.0:
        from contextpool.backends import triton_kernels

        monkeypatch.setitem(triton_kernels.LARGEST_EXPONENT, torch.float32, torch.inf)
        with pytest.raises(AssertionError):
            check_heavy(form, weight, normalized)


@interpreted
def test_both_forms_of_the_forward_give_the_same_numbers(monkeypatch, form):
    from contextpool.backends import triton_kernels

    case = Case(70, causal=form.causal, batch=1)
    plain = cases.run(form.pool, case)
    monkeypatch.setitem(triton_kernels.LARGEST_EXPONENT, torch.float32, -torch.inf)
    shifted = cases.run(form.pool, case)
    cases.check_against_truth(form.pool, case)
    assert any((one != two).any() for one, two in zip(plain, shifted, strict=True)), "another kernel"
    for one, two in zip(plain, shifted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def tiles_read(log_weight, sigma, *, causal):
    """Return which tiles of 16 tokens the kernels read, (blocks, blocks), and how many they list."""
    from contextpool.backends import triton_kernels

    reads, _ = triton_kernels._reads(log_weight[None], sigma[None], 16, causal=causal)
    count, tiles = triton_kernels._listed(reads)
    assert all(
        tiles[0, block, : count[0, block]].tolist() == reads[0, block].nonzero().flatten().tolist()
        for block in range(reads.shape[1])
    )
    return reads[0]


@pytest.mark.skipif(not cases.TRITON, reason="the package triton is missing")
def test_tiles_out_of_reach_are_skipped():
    even, length = torch.zeros(160), 160
    near = tiles_read(even, torch.ones(length), causal=False)
    assert near.equal(torch.ones(10, 10, dtype=torch.bool).triu(-1).tril(1)), "a neighbour on each side"
    assert tiles_read(even, torch.ones(length), causal=True).equal(near.tril())
    assert tiles_read(even, torch.full((length,), 1e6), causal=False).all()
    # One wide query: its block alone reads all, and the blocks between read no more than before.
    sigma = torch.ones(length)
    sigma[70] = 1e3
    assert tiles_read(even, sigma, causal=False).sum(dim=1).tolist() == [2, 3, 3, 3, 10, 3, 3, 3, 3, 2]
    # Heavy tokens are seen from afar, light ones beside them are not.
    heavy = even.clone()
    heavy[150] = 40.0
    heavy[90:120] = -40.0
    reads = tiles_read(heavy, torch.full((length,), 6.0), causal=False)
    assert reads[4].tolist() == [False, True, True, True, True, True, False, True, False, True]
    hidden = even.masked_fill(torch.arange(length) >= 64, -torch.inf)
    assert tiles_read(hidden, torch.full((length,), 1e6), causal=False).sum() == 16, "masked tokens are no tile"


def compiled_figures(*names):
    """Compile forms in a process of its own, because this one may have chosen the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.contextpool.backends.compiled", *names],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = {line.pop("form"): line for line in map(json.loads, done.stdout.splitlines())}
    assert sorted(figures) == sorted(names)
    return figures


def check_compiled(figures, table):
    """Refuse spilled registers, more shared memory than smaller GPUs have, and what is more than in the table."""
    assert {name: each for name, each in figures.items() if each["stack"] or each["spilled"]} == {}
    assert {name: each for name, each in figures.items() if each["shared"] > 99 * 1024} == {}
    if version("triton") != table["triton"]:
        pytest.skip(f"no spills; the other figures are those of Triton {table['triton']}, not {version('triton')}")
    more = [
        (name, figure, number, table["forms"][name][figure])
        for name, each in figures.items()
        for figure, number in each.items()
        if number > table["forms"][name][figure]
    ]
    assert more == [], "more than in the table: python -m tests.contextpool.backends.compiled"


needs_compiler = pytest.mark.skipif(
    not cases.TRITON or cases.TRITON < (3, 6),
    reason="the package triton is missing" if not cases.TRITON else "before Triton 3.6 kernels are compiled otherwise",
)


def test_the_table_has_every_form():
    table = json.loads(compiled.TABLE.read_text())
    assert list(table["forms"]) == list(compiled.FORMS)
    assert len(compiled.FORMS) == 80


@needs_compiler
def test_the_kernels_compile_without_a_gpu_and_need_no_more_than_the_table():
    names = [f"sm_90 bfloat16 {kernel} two-sided 128 wide" for kernel in compiled.KERNELS]
    table = json.loads(compiled.TABLE.read_text())
    figures = compiled_figures(*names)
    check_compiled(figures, table)
    grown = {names[0]: figures[names[1]]}
    with pytest.raises(AssertionError, match="more than in the table"):
        check_compiled(grown, table)


@needs_compiler
def test_a_kernel_that_spills_is_found():
    figures = compiled_figures(*compiled.SPILLING)
    with pytest.raises(AssertionError, match="spilled"):
        check_compiled(figures, json.loads(compiled.TABLE.read_text()))


@needs_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("precision", compiled.PRECISIONS)
@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
def test_every_form_compiles_and_needs_no_more_than_the_table(capability, precision):
    names = [
        name for name, form in compiled.FORMS.items() if (form.capability, form.precision) == (capability, precision)
    ]
    assert len(names) >= 8
    check_compiled(compiled_figures(*names), json.loads(compiled.TABLE.read_text()))


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
