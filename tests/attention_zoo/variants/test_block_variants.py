"""Block-wise variants against dense attention under the same pattern, written out pair by pair."""

import itertools

import pytest
import torch

from attention_zoo import LayerDims, get_variant
from attention_zoo.functional import attention
from attention_zoo.variants import longformer as longformer_module
from attention_zoo.variants import sinkhorn as sinkhorn_module
from attention_zoo.variants import sparse as sparse_module
from attention_zoo.variants import transformer_ls as transformer_ls_module

LENGTHS = (1, 5, 16, 37)


def build(name, length, options, *, num_prefix=0, seed=0, **dims):
    spec = get_variant(name)
    torch.manual_seed(seed)
    layer = LayerDims(dim=12, num_heads=2, max_length=length, num_prefix=num_prefix, **dims)
    return spec.build(spec.config.from_dict(options), layer).double()


def inputs(length, *, batch=2):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, 12, dtype=torch.float64, generator=generator)
    mask = torch.rand(batch, length, generator=generator) > 0.3
    mask[0, -1] = True
    mask[1, length // 2] = True
    return x, mask


def dense(mixer, x, mask, allowed):
    """Attention under `allowed`, (length, length) or (batch, length, length): the reference of all patterns."""
    q, k, v = mixer.projections.split(x)
    allowed = allowed.expand(x.shape[0], -1, -1) & (True if mask is None else mask[:, None, :])
    return mixer.projections.merge(attention(q, k, v, allowed[:, None]), mask)


def pairs(length, sees):
    """Write out a pattern pair by pair: `sees(i, j)` says whether i attends to j."""
    flat = [sees(i, j) for i, j in itertools.product(range(length), repeat=2)]
    return torch.tensor(flat).view(length, length)


def assert_same(mixer, reference, x, mask):
    """Compare outputs, and gradients of the input and of all parameters."""
    results = []
    for compute in (lambda leaf: mixer(leaf, mask), reference):
        leaf = x.clone().requires_grad_()
        out = compute(leaf)
        weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((out * weights).sum(), (leaf, *mixer.parameters()))
        results.append((out, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def assert_dense(mixer, allowed, length):
    """Compare with dense attention under a pattern, with and without a mask."""
    x, mask = inputs(length)
    for used in (None, mask):
        assert_same(mixer, lambda leaf, used=used: dense(mixer, leaf, used, allowed), x, used)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [1, 4, 50])
def test_local_attends_within_blocks(length, window):
    mixer = build("local", length, {"window": window, "rotary": True})
    assert_dense(mixer, pairs(length, lambda i, j: i // window == j // window), length)


@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "num_global", "num_prefix"), [(2, 0, 0), (7, 0, 1), (10, 3, 1), (100, 2, 0)])
def test_longformer_attends_to_a_window_and_to_global_tokens(
    length, window, num_global, num_prefix, block, monkeypatch
):
    monkeypatch.setattr(longformer_module, "_BLOCK", block)
    mixer = build("longformer", length, {"window": window, "num_global": num_global}, num_prefix=num_prefix)
    known = max(num_global, num_prefix)
    assert_dense(mixer, pairs(length, lambda i, j: abs(i - j) <= window // 2 or i < known or j < known), length)


@pytest.mark.parametrize(
    ("length", "block_size", "num_random"), [(1, 4, 3), (9, 4, 1), (37, 4, 2), (37, 3, 3), (60, 4, 0)]
)
def test_bigbird_attends_to_window_global_and_random_blocks(length, block_size, num_random):
    mixer = build("bigbird", length, {"block_size": block_size, "num_random": num_random})
    x, mask = inputs(length)
    mask[0, length // 2 :] = False
    mask[0, 0] = True
    for used in (None, mask):
        allowed = torch.stack(
            [bigbird_pattern(mixer, length, row) for row in (mask if used is not None else [None] * 2)]
        )
        assert_same(mixer, lambda leaf, used=used, allowed=allowed: dense(mixer, leaf, used, allowed), x, used)


def bigbird_pattern(mixer, length, row):
    """Write out the pattern of one sequence, taking the random blocks from the mixer after checking each."""
    size, num_random = mixer.config.block_size, mixer.config.num_random
    blocks = -(-length // size)
    last = blocks - 1 if row is None else int(row.nonzero().max()) // size
    last = max(last, 1)
    index, exists = mixer._met_blocks(blocks, torch.tensor([[last]]))
    met = {}
    for block in range(blocks):
        picks = [int(i) for i, ok in zip(index[0, block, 3:], exists[0, block, 3:], strict=True) if ok]
        candidates = set(range(1, last)) - {block - 1, block, block + 1}
        assert len(set(picks)) == len(picks) == min(num_random, len(candidates))
        assert set(picks) <= candidates
        met[block] = {block - 1, block, block + 1, 0, last, *picks}

    def sees(i, j):
        ends = (0, last)
        return i // size in ends or j // size in met[i // size]

    return pairs(length, sees)


def test_bigbird_draws_its_random_blocks_evenly():
    mixer = build("bigbird", 400, {"block_size": 4, "num_random": 3})
    index, exists = mixer._met_blocks(100, torch.tensor([[99]]))
    assert exists[0, :, 3:].all()
    counts = torch.bincount(index[0, :, 3:].flatten(), minlength=100)
    assert counts[0] == counts[99] == 0
    assert counts.max() <= 12  # 300 draws over 98 blocks
    other = build("bigbird", 400, {"block_size": 4, "num_random": 3}, seed=1)
    assert not torch.equal(mixer.draws, other.draws)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("stride", "num_summary"), [(1, 1), (5, 2), (8, 3), (60, 10)])
def test_fixed_sparse_attends_to_the_block_and_to_all_summaries(length, stride, num_summary):
    mixer = build("sparse", length, {"stride": stride, "num_summary": num_summary})
    assert_dense(
        mixer, pairs(length, lambda i, j: i // stride == j // stride or j % stride >= stride - num_summary), length
    )


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2, 5, 60])
def test_strided_sparse_attends_to_a_window_and_to_multiples_of_the_stride(length, stride, rows, monkeypatch):
    monkeypatch.setattr(sparse_module, "_ROWS", rows)
    mixer = build("sparse", length, {"pattern": "strided", "stride": stride, "num_summary": 1})
    assert_dense(mixer, pairs(length, lambda i, j: abs(i - j) < stride or (i - j) % stride == 0), length)


def reformer_pattern(mixer, q, mask):
    """Write out who sees whom, head by head: (batch, num_heads, length, length)."""
    size, (batch, heads, length, _) = mixer.config.chunk_size, q.shape
    allowed = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for b, h, rotation in itertools.product(range(batch), range(heads), mixer.rotations):
        turned = q[b, h] @ rotation[h].to(q.dtype)
        buckets = torch.cat((turned, -turned), dim=-1).argmax(dim=-1).tolist()
        real = [i for i in range(length) if mask is None or mask[b, i]]
        chunk = {i: place // size for place, i in enumerate(sorted(real, key=lambda i: (buckets[i], i)))}
        for i, j in itertools.product(real, repeat=2):
            if i != j and chunk[i] - chunk[j] in (0, 1):
                allowed[b, h, i, j] = True
    alone = ~allowed.any(dim=-1)
    return allowed | torch.diag_embed(alone)


@pytest.mark.parametrize("length", [1, 2, 5, 16, 37])
@pytest.mark.parametrize(("chunk_size", "num_hashes"), [(1, 1), (3, 1), (4, 3), (10, 2), (40, 2)])
def test_reformer_attends_to_what_was_hashed_beside_it(length, chunk_size, num_hashes):
    mixer = build("reformer", length, {"chunk_size": chunk_size, "num_buckets": 4, "num_hashes": num_hashes})
    x, mask = inputs(length)

    def reference(leaf, used):
        q, v = (mixer.projections.to_heads(f(leaf)) for f in (mixer.projections.query, mixer.projections.value))
        allowed = reformer_pattern(mixer, q.detach(), used)
        k = torch.nn.functional.normalize(q, dim=-1)
        return mixer.projections.merge(attention(q, k, v, allowed), used)

    for used in (None, mask):
        assert_same(mixer, lambda leaf, used=used: reference(leaf, used), x, used)


@pytest.mark.parametrize(("length", "block_size"), [(1, 4), (5, 5), (16, 4), (37, 8)])
def test_sinkhorn_attends_to_its_block_and_to_the_sorted_one(length, block_size):
    mixer = build("sinkhorn", length, {"block_size": block_size}).eval()
    x, mask = inputs(length)
    mask[0, : length // 2] = False
    for used in (None, mask):
        assert_same(mixer, lambda leaf, used=used: sinkhorn_reference(mixer, leaf, used), x, used)


def sinkhorn_reference(mixer, x, mask):
    """One sequence, head and block at a time, with plain Sinkhorn steps on the blocks that hold a real token."""
    size, heads = mixer.config.block_size, []
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    q, k, v = mixer.projections.split(x)
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        starts = [s for s in range(0, x.shape[1], size) if real[b, s : s + size].any()]
        held = [[i for i in range(s, min(s + size, x.shape[1])) if real[b, i]] for s in starts]
        columns = [s // size for s in starts]
        matrix = torch.stack([k[b, h, own].sum(0) @ mixer.sort[h][:, columns] for own in held])
        matrix = (matrix / mixer.config.temperature).exp()
        for _ in range(mixer.config.num_iterations):
            matrix = matrix / matrix.sum(0, keepdim=True)
            matrix = matrix / matrix.sum(1, keepdim=True)
        out = torch.zeros_like(q[b, h])
        for place, own in enumerate(held):
            filled = sorted({i % size for tokens in held for i in tokens})
            keys, values = [k[b, h, i] for i in own], [v[b, h, i] for i in own]
            for offset in filled:
                met = [(matrix[place, c], s + offset) for c, s in enumerate(starts) if s + offset in held[c]]
                keys.append(sum(weight * k[b, h, i] for weight, i in met))
                values.append(sum(weight * v[b, h, i] for weight, i in met))
            seen = attention(q[b, h, own][None, None], torch.stack(keys)[None, None], torch.stack(values)[None, None])
            out = out.index_put((torch.tensor(own),), seen[0, 0])
        heads.append(out)
    return mixer.projections.merge(torch.stack(heads).unflatten(0, q.shape[:2]), mask)


def test_sinkhorn_gives_a_permutation_and_noise_in_training_only():
    scores = torch.randn(2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = sinkhorn_module.sinkhorn(scores, None, 50)
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(-2), torch.ones(2, 7, dtype=torch.float64))
    hard = sinkhorn_module.sinkhorn(scores / 0.02, None, 1000).argmax(-1)
    assert torch.equal(hard.sort(dim=-1).values, torch.arange(7).expand(2, -1))
    mixer = build("sinkhorn", 40, {"block_size": 8})
    x, _ = inputs(40)
    assert not torch.equal(mixer(x), mixer(x))
    mixer.eval()
    assert torch.equal(mixer(x), mixer(x))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "rank", "together"), [(2, 3, 1), (4, 2, 8), (64, 5, 64)])
def test_transformer_ls_attends_to_segments_and_summaries(length, window, rank, together, monkeypatch):
    monkeypatch.setattr(transformer_ls_module, "_QUERIES", together)
    mixer = build("transformer_ls", length, {"window": window, "rank": rank})
    x, mask = inputs(length)

    def near(i, j):
        start = i // window * window
        return start - window // 2 <= j < start + window + window // 2

    allowed = torch.cat((pairs(length, near), torch.ones(length, rank, dtype=torch.bool)), dim=1)

    def reference(leaf, used):
        real = torch.ones(2, length, dtype=torch.bool) if used is None else used
        project, split = mixer.projections, mixer.projections.to_heads
        k, v = project.key(leaf), project.value(leaf)
        summaries = []
        for b in range(2):
            weights = mixer.summary(k[b][real[b]]).softmax(dim=0).unflatten(1, (2, rank))
            summaries.append(
                [torch.einsum("nhr,nhd->rhd", weights, y[b][real[b]].unflatten(1, (2, 6))) for y in (k, v)]
            )
        ks, vs = (torch.stack(y).flatten(2) for y in zip(*summaries, strict=True))
        k, v = (
            torch.cat((split(mixer.norm_local(y)), split(mixer.norm_global(z))), dim=2) for y, z in ((k, ks), (v, vs))
        )
        seen = allowed & torch.cat((real, torch.ones(2, rank, dtype=torch.bool)), dim=1)[:, None]
        return project.merge(attention(split(project.query(leaf)), k, v, seen[:, None]), used)

    for used in (None, mask):
        assert_same(mixer, lambda leaf, used=used: reference(leaf, used), x, used)


@pytest.mark.parametrize("length", [1, 5, 16, 37, 75])
@pytest.mark.parametrize("block_size", [2, 4, 20])
def test_h_transformer_attends_the_more_coarsely_the_farther(length, block_size):
    mixer = build("h_transformer_1d", length, {"block_size": block_size})
    x, mask = inputs(length)
    mask[0, : length // 2] = False
    for used in (None, mask):
        assert_same(mixer, lambda leaf, used=used: hierarchical_reference(mixer, leaf, used), x, used)


def hierarchical_reference(mixer, x, mask):
    """Every pair at the finest level at which their blocks are the same or touch; scores of averages over cells."""
    size, length = mixer.config.block_size, x.shape[1]
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    q, k, v = mixer.projections.split(x)

    def level_of(i, j):
        return next(n for n in range(20) if abs(i // (size << n) - j // (size << n)) <= 1)

    levels = torch.tensor([[level_of(i, j) for j in range(length)] for i in range(length)])
    position = torch.arange(length)
    scores = torch.zeros(*q.shape[:3], length, dtype=x.dtype)
    for level in range(int(levels.max()) + 1):
        same_cell = (position[:, None] >> level == position >> level) & real[:, None, :]
        average = same_cell.to(x.dtype) / same_cell.sum(-1, keepdim=True).clamp_min(1)
        means = [average.unsqueeze(1) @ heads for heads in (q, k)]
        scores = torch.where(levels == level, means[0] @ means[1].transpose(2, 3) / q.shape[3] ** 0.5, scores)
    weights = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)
    return mixer.projections.merge(weights @ v, mask)
