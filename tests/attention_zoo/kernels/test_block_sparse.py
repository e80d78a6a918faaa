"""The kernel behind the block-wise variants: parts, shared keys, log-sum-exp, dropout, precision, memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_zoo import LayerDims, get_variant
from attention_zoo.functional import attention
from attention_zoo.kernels import block_sparse
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention, merge

BATCH, HEADS, BLOCKS, SIZE, KEY_BLOCKS, KEY_SIZE, DIM = 2, 3, 4, 5, 7, 3, 4
KEYS = KEY_BLOCKS * KEY_SIZE


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def heads():
    return tuple(draw(BATCH, HEADS, n, DIM, seed=i) for i, n in enumerate((BLOCKS * SIZE, KEYS, KEYS)))


def make_pattern(*, per_example, masked, shared, pairs):
    """Draw a pattern, and write it out: (batch, queries, keys) bool. The last three keys are the shared ones."""
    generator = torch.Generator().manual_seed(7)
    batch = BATCH if per_example else 1
    slots = [torch.randperm(KEY_BLOCKS - 1, generator=generator)[:3] for _ in range(batch * BLOCKS)]
    index = torch.stack(slots).view(batch, BLOCKS, 3)
    columns = (index.unsqueeze(-1) * KEY_SIZE + torch.arange(KEY_SIZE)).flatten(2)

    def maybe(condition, *shape):
        return torch.rand(shape, generator=generator) > 0.3 if condition else None

    width = 3 * KEY_SIZE
    pattern = Pattern(
        index=index,
        key_size=KEY_SIZE,
        seen=maybe(masked, batch, BLOCKS, width),
        relative=maybe(masked, SIZE, width),
        pairs=maybe(pairs, BATCH, BLOCKS, SIZE, width),
        shared=torch.arange(KEYS - 3, KEYS).expand(batch, -1) if shared else None,
        shared_seen=maybe(masked and shared, batch, 3),
    )
    seen = torch.ones(BATCH, BLOCKS, SIZE, width, dtype=torch.bool)
    for condition in (
        None if pattern.seen is None else pattern.seen[:, :, None],
        pattern.relative,
        pattern.pairs,
    ):
        seen = seen if condition is None else seen & condition
    allowed = torch.zeros(BATCH, BLOCKS, SIZE, KEYS, dtype=torch.bool)
    allowed.scatter_(3, columns.unsqueeze(2).expand(BATCH, -1, SIZE, -1), seen)
    if shared:
        allowed[..., -3:] = True if pattern.shared_seen is None else pattern.shared_seen[:, None, None]
    return pattern, allowed.flatten(1, 2)


@pytest.mark.parametrize("scores", [1, 70, 500, 2**17])
@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_kernel_equals_dense_attention(per_example, masked, shared, pairs, scores, monkeypatch):
    monkeypatch.setattr(block_sparse, "_NUMBERS_CPU", scores)
    pattern, allowed = make_pattern(per_example=per_example, masked=masked, shared=shared, pairs=pairs)
    q, k, v = heads()
    out, log_sum = block_sparse_attention(q, k, v, pattern)
    dense = (q @ k.transpose(2, 3) / math.sqrt(DIM)).masked_fill(~allowed[:, None], -torch.inf).logsumexp(-1)
    expected = attention(q, k, v, allowed[:, None])
    sees = allowed.any(-1)[:, None].expand_as(log_sum)
    assert sees.any()
    weights, more = draw(*out.shape, seed=8).detach() * sees.unsqueeze(-1), draw(*dense.shape, seed=9).detach()
    results = [
        (o[sees], s[sees], *torch.autograd.grad((o * weights).sum() + (s * more)[sees].sum(), (q, k, v)))
        for o, s in ((out, log_sum), (expected, dense))
    ]
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def test_a_row_without_keys_is_finite_and_loses_every_merge():
    pattern, _ = make_pattern(per_example=True, masked=False, shared=False, pairs=False)
    nothing = Pattern(index=pattern.index, key_size=KEY_SIZE, seen=torch.zeros(BATCH, BLOCKS, 9, dtype=torch.bool))
    q, k, v = (x.detach().float().requires_grad_() for x in heads())
    full, empty = (block_sparse_attention(q, k, v, p) for p in (pattern, nothing))
    assert empty[0].isfinite().all()
    out, log_sum = merge([empty, full])
    assert torch.equal(out, full[0])
    assert torch.equal(log_sum, full[1])
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_merge_is_attention_over_the_union():
    q, k, v = heads()
    everything = attention(q, k, v)
    blocks = torch.arange(KEY_BLOCKS).expand(1, BLOCKS, -1)
    parts = [
        block_sparse_attention(q, k, v, Pattern(index=index, key_size=KEY_SIZE))
        for index in (blocks[..., :2], blocks[..., 2:])
    ]
    torch.testing.assert_close(merge(parts)[0], everything)


@pytest.mark.parametrize("scores", [70, 2**17])
def test_dropout_has_the_gradient_of_what_it_computes(scores, monkeypatch):
    monkeypatch.setattr(block_sparse, "_NUMBERS_CPU", scores)
    pattern, _ = make_pattern(per_example=True, masked=True, shared=True, pairs=False)

    def seeded(q, k, v):
        torch.manual_seed(3)
        out, log_sum = block_sparse_attention(q, k, v, pattern, dropout=0.4)
        return out, log_sum.clamp_min(-1e3)

    assert torch.autograd.gradcheck(seeded, heads(), fast_mode=True)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    q, k = torch.zeros(1, 1, 1000, 8), torch.zeros(1, 1, 1000, 8)
    v = torch.ones(1, 1, 1000, 8)
    pattern = Pattern(index=torch.arange(10).view(1, 10, 1), key_size=100)
    torch.manual_seed(0)
    out, log_sum = block_sparse_attention(q, k, v, pattern, dropout=0.25)
    kept = out[..., 0] * 100 * 0.75  # weights are 1 / 100, the kept ones divided by 0.75
    assert kept.mean() == pytest.approx(75, abs=0.5)
    assert kept.std() == pytest.approx(math.sqrt(100 * 0.25 * 0.75), abs=0.5)
    torch.testing.assert_close(log_sum, torch.full_like(log_sum, math.log(100)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_computes_in_float32(dtype):
    pattern, _ = make_pattern(per_example=True, masked=True, shared=True, pairs=False)
    low = tuple(x.detach().to(dtype) for x in heads())
    out, log_sum = block_sparse_attention(*low, pattern)
    exact, exact_sum = block_sparse_attention(*(x.float() for x in low), pattern)
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype))
    torch.testing.assert_close(log_sum, exact_sum)


def test_autocast_changes_nothing_inside():
    pattern, _ = make_pattern(per_example=True, masked=True, shared=True, pairs=False)
    inputs = tuple(x.detach().float().requires_grad_() for x in heads())
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out, _ = block_sparse_attention(*inputs, pattern)
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for plain, mixed in zip(*results, strict=True):
        assert torch.equal(plain, mixed)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *made])
        return result


@pytest.mark.parametrize("dropout", [0.1, pytest.param(0.0, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("local", {}),
        ("longformer", {"window": 128}),
        ("bigbird", {}),
        ("sparse", {}),
        ("sparse", {"pattern": "strided"}),
        ("reformer", {}),
        ("sinkhorn", {}),
        ("transformer_ls", {}),
        ("h_transformer_1d", {}),
    ],
)
def test_nothing_of_length_by_length_is_made(name, options, dropout):
    length, dim = 4096, 16
    spec = get_variant(name)
    mixer = spec.build(
        spec.config.from_dict(options), LayerDims(dim=dim, num_heads=2, max_length=length, dropout=dropout)
    )
    x = torch.randn(1, length, dim, requires_grad=True)
    with LargestTensor() as largest:
        mixer(x).sum().backward()
    assert length * dim <= largest.numel <= length * 160 < length**2 / 25


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["bigbird", "local"])
def test_compiled_is_the_same(name):
    spec = get_variant(name)
    mixer = spec.build(spec.config(), LayerDims(dim=16, num_heads=2, max_length=300)).eval()
    x, mask = torch.randn(2, 300, 16, requires_grad=True), torch.rand(2, 300) > 0.2
    plain, compiled = mixer(x, mask), torch.compile(mixer, backend="aot_eager")(x, mask)
    torch.testing.assert_close(compiled, plain)
    (expected,), (actual,) = (torch.autograd.grad(out.square().sum(), x) for out in (plain, compiled))
    torch.testing.assert_close(actual, expected)
