"""The counted FLOPs of every built-in variant against a closed form, and the list of what is not counted.

One step is a forward and a backward pass. A product of two matrices that both have gradients costs three products
(itself, and one for each gradient), one of which only one side has a gradient costs two. The softmax kernels make the
scores again in backward: seven products of queries by keys in place of six. All equalities are exact.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry

from attention_zoo import LayerDims, available, get_variant
from contextpool.backends.pyramid.stencils import BLOCK
from lra.measure.flops import count_flops

BATCH, LENGTH, DIM, HEADS = 2, 128, 32, 4
TOKENS = BATCH * LENGTH
SCORES = BATCH * LENGTH * LENGTH * DIM
"""Multiplications of all heads of queries by keys."""
PROJECTIONS = 3 * 2 * 4 * TOKENS * DIM * DIM
"""Four linear maps, forward and two products each in backward."""


SIZES = [(128, 48), (500, 32)]
"""Length and width, which vary both, so that a form with one in place of the other fits neither; 500 is no multiple of
any block."""


def counted(variant, length=LENGTH, dim=DIM, dropout=0.0, **options):
    torch.manual_seed(0)
    spec = get_variant(variant)
    dims = LayerDims(dim=dim, num_heads=HEADS, max_length=length, dropout=dropout)
    mixer = spec.build(spec.config(**options), dims)
    x = torch.randn(BATCH, length, dim, requires_grad=True)
    return count_flops(lambda: mixer(x).square().sum().backward())


# Softmax attention: two products forward; backward makes the scores again, and two products for each of those two.
@pytest.mark.parametrize(("backend", "products"), [("fused", 7), ("blockwise", 7), ("reference", 6)])
def test_full_equals_its_closed_form(backend, products):
    count = counted("full", backend=backend)
    assert count.total == PROJECTIONS + 2 * products * SCORES
    used = any("scaled_dot_product" in name for name in count.by_operator)
    assert used == (backend == "fused")


def test_dropout_in_the_blockwise_kernel_changes_no_count():
    assert counted("full", dropout=0.1).total == counted("full", backend="blockwise").total


@pytest.mark.parametrize(("backend", "products"), [("fused", 7), ("blockwise", 7)])
def test_local_equals_its_closed_form(backend, products):
    window = 32
    assert (
        counted("local", window=window, backend=backend).total == PROJECTIONS + 2 * products * SCORES * window // LENGTH
    )


def test_a_short_last_block_of_local_is_counted_whole():
    window, blocks = 50, 3
    expected = PROJECTIONS + 2 * 7 * BATCH * blocks * window * window * DIM
    assert counted("local", window=window).total == expected


def test_linear_equals_its_closed_form():
    # Keys times values, and queries times that: values have a column of ones, for the normaliser.
    width = DIM // HEADS + 1
    assert counted("linear").total == PROJECTIONS + 3 * 2 * 2 * TOKENS * DIM * width


def test_linformer_equals_its_closed_form():
    rank = 16
    shortening = 3 * 2 * 2 * TOKENS * DIM * rank
    assert counted("linformer", rank=rank).total == PROJECTIONS + shortening + 2 * 7 * TOKENS * rank * DIM


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_costs_three_times_its_forward(groups, transposed):
    make = torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d
    layer = make(8, 16, 5, groups=groups, bias=False)
    x = torch.randn(2, 8, 20, requires_grad=True)
    count = count_flops(lambda: layer(x).sum().backward())
    places = 20 if transposed else 16
    assert count.total == 3 * 2 * 2 * places * 5 * 8 * 16 // groups


def test_a_product_that_adds_in_place_is_counted():
    a, b, total = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.zeros(2, 3, 5)
    assert count_flops(lambda: total.baddbmm_(a, b)).total == 2 * 2 * 3 * 4 * 5
    assert count_flops(lambda: total[0].addmm_(a[0], b[0])).total == 2 * 3 * 4 * 5


def test_fnet_has_no_formula_and_says_so():
    count = counted("fnet")
    assert count.total == 0
    assert any("fft" in name for name in count.uncounted)


def test_sorting_softmax_and_pointwise_work_are_listed_and_views_are_not():
    x = torch.randn(8, 16, requires_grad=True)

    def run():
        product = x.view(16, 8) @ x
        (product.sort(dim=1).values.softmax(dim=1) * F.gelu(product)).sum().backward()

    count = count_flops(run)
    assert count.total == 3 * 2 * 16 * 8 * 16
    assert count.by_operator == {"mm": count.total}
    assert {"sort", "_softmax", "_softmax_backward_data", "sum"} <= count.uncounted.keys()
    assert {"gelu", "gelu_backward", "mul"} <= count.uncounted_pointwise.keys()
    assert not {"view", "t", "expand", "ones_like", "mm"} & {*count.uncounted, *count.uncounted_pointwise}


def test_counting_leaves_the_gradients_as_they_are():
    layer = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8)
    layer(x).sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    count_flops(lambda: layer(x).sum().backward())
    assert torch.equal(layer.weight.grad, plain)


def product(rows, inner, columns, sides=2):
    """A product of matrices of which so many sides have gradients, forward and backward."""
    return 2 * (1 + sides) * rows * inner * columns


def linear(tokens, before, after):
    return product(tokens, before, after)


def softmax(queries, keys, dim):
    """Attention of one sequence, all heads together, with scores made again in backward."""
    return 7 * 2 * queries * keys * dim


def blocks_of(length, size):
    return -(-length // size)


def projections(n, d, count=4):
    return count * linear(BATCH * n, d, d)


def full(n, d):
    return projections(n, d) + BATCH * softmax(n, n, d)


def local(n, d, window=50):
    return projections(n, d) + BATCH * blocks_of(n, window) * softmax(window, window, d)


def features(n, d, per_head):
    """Keys times values, and queries times that; values have a column of ones for the normaliser."""
    return projections(n, d) + BATCH * HEADS * 2 * product(n, per_head, d // HEADS + 1)


def linear_attention(n, d):
    return features(n, d, d // HEADS)


def cosformer(n, d):
    return features(n, d, 2 * d // HEADS)


def linformer(n, d, rank=16):
    return projections(n, d) + BATCH * (2 * product(rank, n, d) + softmax(n, rank, d))


def fnet(n, d):
    return 0  # Fourier transforms have no formula


def mlp_only(n, d):
    return linear(BATCH * n, d, 2 * d) + linear(BATCH * n, 2 * d, d)


def conv(n, d, kernel=5):
    return mlp_only(n, d) + product(BATCH * n, kernel, 2 * d)


def luna(n, d, memory=256):
    own = 2 * linear(BATCH * memory, d, d)
    return projections(n, d) + own + BATCH * (softmax(memory, n, d) + softmax(n, memory, d))


def gated_linear(n, d, chunk=32):
    """As `lion`, with narrow keys, no column for a normaliser, and two gates."""
    narrow, wide, count = d // HEADS // 2, d // HEADS, blocks_of(n, chunk)
    maps = 2 * linear(BATCH * n, d, d // 2) + 3 * linear(BATCH * n, d, d) + linear(BATCH * n, d, 2 * HEADS)
    near = product(chunk, narrow, chunk) + product(chunk, chunk, wide)
    far = product(narrow, chunk, wide) + product(chunk, narrow, wide)
    between = product(count, count, narrow * wide)
    return maps + BATCH * HEADS * (count * (near + 2 * far) + 2 * between)


def lion(n, d, chunk=64):
    """Within chunks, states of all chunks (no more than one group of them), and two directions of those."""
    width, count = d // HEADS, blocks_of(n, chunk)
    near = product(chunk, width, chunk) + product(chunk, chunk, width + 1)
    far = product(width, chunk, width + 1) + product(chunk, width, width + 1)
    between = product(count, count, width * (width + 1))
    gate = linear(BATCH * n, d, HEADS)
    return projections(n, d) + gate + BATCH * HEADS * (count * (near + 2 * far) + 2 * between)


def gated_delta(n, d, chunk=32, taps=7):
    """Both directions of chunks that solve a triangular system, and a tree of the maps of chunks.

    Solving has no formula, but its gradient by the matrix is a product. The root of the tree is made and not used.
    """
    narrow, wide = d // HEADS // 2, d // HEADS
    maps = 2 * linear(BATCH * n, d, d // 2) + 3 * linear(BATCH * n, d, d) + 2 * linear(BATCH * n, d, 2 * HEADS)
    solved = product(chunk, narrow, chunk) + 2 * chunk * chunk * (narrow + wide)
    near = product(chunk, narrow, chunk) + product(chunk, chunk, wide)
    far = product(narrow, chunk, narrow + wide) + 2 * product(chunk, narrow, wide)
    count = blocks_of(n, chunk)
    total = count * (solved + near + far)
    while count > 1:
        count = blocks_of(count, 2)
        sides = 2 if count > 1 else 0
        total += count * (product(narrow, narrow, narrow, sides) + product(narrow, narrow, wide, sides))
        total += count * product(narrow, narrow, wide, sides=2 if count > 1 else 1)
    return maps + product(BATCH * n, taps, 2 * d) + 2 * BATCH * HEADS * total


def h_transformer_1d(n, d, block=16):
    count = blocks_of(n, block)
    total = projections(n, d) + BATCH * count * softmax(block, 3 * block, d)
    while count > 2:
        cells = count * block // 2
        total += BATCH * cells * 3 * product(1, 2, d, sides=1)  # averages of queries, keys and values
        count = blocks_of(cells, block)
        total += BATCH * count * softmax(block, 2 * block, d)
    return total


def longformer(n, d, window=512):
    radius, block = min(window // 2, n), 64
    keys = (2 * blocks_of(radius, block) + 1) * block
    return projections(n, d) + BATCH * blocks_of(n, block) * softmax(block, keys, d)


def exponentials(n, d, states):
    """The kernels of two directions, each as long as the sequence, as a product of two factors."""
    inner = math.isqrt(n - 1) + 1
    return 2 * d * product(blocks_of(n, inner), states, inner)


def mega(n, d, averages=16):
    key = d // HEADS
    value = max(8, round((2 * d - key) / 24) * 8)
    maps = linear(BATCH * n, d, key) + 3 * linear(BATCH * n, d, value) + 2 * linear(BATCH * n, d, d)
    # One head; queries and keys have the position bias beside them, and fused kernels take all three equally wide.
    return maps + exponentials(n, d, averages) + BATCH * softmax(n, n, max(2 * key, value))


def s4d(n, d, state=64):
    return linear(BATCH * n, d, 2 * d) + exponentials(n, d, state)


def diagonal_system(n, d, states):
    """Maps into complex states and out of those of two directions; the scan has no formula."""
    return linear(BATCH * n, d, 2 * states) + linear(BATCH * n, 2 * 2 * states, d)


def s5(n, d, blocks=8):
    states = blocks * round(d / (2 * blocks))
    return diagonal_system(n, d, states) + linear(BATCH * n, d, d)


def hgrn(n, d):
    states = round(4 * d / 7 / HEADS) * HEADS
    return 3 * linear(BATCH * n, d, 2 * states) + linear(BATCH * n, d, states)


def lru(n, d):
    return diagonal_system(n, d, d // 3) + linear(BATCH * n, d, 2 * d)


def mamba(n, d, state=16, kernel=4):
    """The selective scan itself has no formula."""
    rank = math.ceil(d / 16)
    inner = max(4, round(d * d / (3 * d + 2 * (2 * rank + 3 * state + kernel + 3))) * 4)
    direction = (
        product(BATCH * n, kernel, inner) + linear(BATCH * n, inner, rank + 2 * state) + linear(BATCH * n, rank, inner)
    )
    return linear(BATCH * n, d, 2 * inner) + 2 * direction + linear(BATCH * n, inner, d)


def multiscale_conv(n, d):
    """The Fourier transforms have no formula; the interpolation of the pieces is a product with a constant."""
    size = max(size for size in range(2, n // 8 + 1) if size * scales(size, n) <= d)
    stretched = sum(product(2 * d * size, 3, 2**power, sides=1) for power in range(1, scales(size, n) - 1))
    return linear(BATCH * n, d, 2 * d) + stretched


def scales(size, length):
    return 1 + math.ceil(math.log2(length / size))


def gau(n, d, key=128, bias=32):
    """Scores are made again in backward: four products of queries by keys, and three of weights by values."""
    width = max(8, round((4 * d - key) / 24) * 8)
    maps = linear(BATCH * n, d, key) + 3 * linear(BATCH * n, d, width)
    return maps + BATCH * 2 * n * n * (4 * (key + bias) + 3 * width)


def differential(n, d):
    """Two maps, whose queries and keys are made as wide as the values by zeros."""
    return projections(n, d) + 2 * BATCH * softmax(n, n, d)


def hrrformer(n, d):
    return projections(n, d)  # binding is Fourier transforms and products entry by entry


def tnn(n, d, hidden=32, layers=3):
    """The network sees each distance to both sides; the Fourier transforms have no formula."""
    width = max(8, round((4 * d * d - layers * hidden**2) / (3 * d + hidden) / 8) * 8)
    network = product(2 * n, 1, hidden, sides=1) + layers * linear(2 * n, hidden, hidden) + linear(2 * n, hidden, width)
    return 3 * linear(BATCH * n, d, width) + network


def nystrom(n, d, landmarks=64, iterations=6, kernel=35):
    means = 3 * product(landmarks, n, d, sides=1)  # of queries, keys and values
    inverse = HEADS * iterations * 4 * product(landmarks, landmarks, landmarks)
    inner = 2 * product(landmarks, landmarks, d)  # scores between landmarks, and the inverse times what they saw
    outer = softmax(landmarks, n, d) + softmax(n, landmarks, d)
    return projections(n, d) + BATCH * (means + inverse + inner + outer + product(n, kernel, d))


def skyformer(n, d, landmarks=128, iterations=6):
    # The first iteration starts from the identity, which has no gradient: two products spare one each.
    cubes = landmarks**3 * (6 * 3 * iterations - 2 * 2)
    inner = 2 * product(landmarks, landmarks, d)
    return projections(n, d) + BATCH * (HEADS * cubes + inner + 4 * product(n, landmarks, d))


def reformer(n, d, chunk=10, buckets=10):
    padded = blocks_of(n, chunk) * chunk
    hashes = product(BATCH * padded, d, buckets // 2, sides=0)
    return projections(n, d, 3) + hashes + BATCH * blocks_of(n, chunk) * softmax(chunk, 2 * chunk, d)


def sinkhorn(n, d, block=50):
    count = blocks_of(n, block)
    sorting = product(count, d, count) + 2 * product(count, count, block * d)
    return projections(n, d) + BATCH * (sorting + count * softmax(block, 2 * block, d))


def sparse(n, d, stride=50, summary=10):
    count = blocks_of(n, stride)
    return projections(n, d) + BATCH * count * softmax(stride, stride + count * summary, d)


def synthesizer(n, d, rank=32):
    return projections(n, d, 2) + BATCH * HEADS * softmax(n, n, max(rank, d // HEADS))


def transformer_ls(n, d, block=64, rank=32):
    summaries = linear(BATCH * n, d, HEADS * rank) + BATCH * 2 * product(rank, n, d)
    return projections(n, d) + summaries + BATCH * blocks_of(n, block) * softmax(block, 3 * block + rank, d)


def adaptive_span(n, d):
    ramp = round(n / 16)  # spans start at zero: the ramp alone is the band
    radius, pairs = min(blocks_of(ramp, 32) * 32, n), 0
    for start in range(0, n, 64):
        stop = min(start + 64, n)
        pairs += (stop - start) * (min(stop + radius, n) - max(0, start - radius))
    return projections(n, d) + BATCH * softmax(pairs, 1, d)


def bigbird(n, d, block=64, random=3):
    count = blocks_of(n, block)
    ends = softmax(2 * block, count * block, d)
    return projections(n, d) + BATCH * (count * softmax(block, (2 + 3 + random) * block, d) + ends)


def block_topk(n, d, block=32, chosen=4, tile=32):
    count = blocks_of(n, block)
    padded = count * block
    tiles = padded * (chosen - 1) // tile + count
    scores = product(padded, d, count, sides=0)
    return projections(n, d) + BATCH * (scores + softmax(padded + tiles * tile, block, d))


def mra(n, d, block=32, row=8):
    count = blocks_of(n, block)
    coarse = 2 * product(count, count, d)  # scores of the means, and what their weights read
    return projections(n, d) + BATCH * (coarse + min(row * count, count**2) * softmax(block, block, d))


def convolutions_and_full(n, d, kernel=3):
    hidden = max(16, d // 8)
    return full(n, d) + linear(BATCH * n, d, kernel * hidden) + linear(BATCH * n, hidden, kernel * 2)


def contextpool(n, d):
    """Dense up to 384 tokens, then by the pyramid, of which the narrow widths of the start read level 0 alone."""
    if n <= 384:
        pool = BATCH * 2 * n * n * (d + 1 + 2 * d + 1)
    else:
        tiles = BATCH * blocks_of(n, BLOCK)
        pool = 2 * tiles * BLOCK * 3 * BLOCK * (d + 2 * d + 1)
    return convolutions_and_full(n, d) + pool


FORMS = {
    "adaptive_span": adaptive_span,
    "bigbird": bigbird,
    "block_topk": block_topk,
    "contextpool": contextpool,
    "contextpool_conv_only": convolutions_and_full,
    "conv": conv,
    "cosformer": cosformer,
    "differential": differential,
    "fnet": fnet,
    "full": full,
    "gated_delta": gated_delta,
    "gated_linear": gated_linear,
    "gau": gau,
    "h_transformer_1d": h_transformer_1d,
    "hgrn": hgrn,
    "hrrformer": hrrformer,
    "linear": linear_attention,
    "linformer": linformer,
    "lion": lion,
    "local": local,
    "longformer": longformer,
    "lru": lru,
    "luna": luna,
    "mamba": mamba,
    "mega": mega,
    "mlp_only": mlp_only,
    "mra": mra,
    "multiscale_conv": multiscale_conv,
    "nystrom": nystrom,
    "performer": linear_attention,  # its default kernel makes features without a projection
    "reformer": reformer,
    "s4d": s4d,
    "s5": s5,
    "sinkhorn": sinkhorn,
    "skyformer": skyformer,
    "sparse": sparse,
    "synthesizer": synthesizer,
    "tnn": tnn,
    "transformer_ls": transformer_ls,
}


def test_every_variant_has_a_closed_form():
    assert FORMS.keys() == set(available())
    assert len(FORMS) >= 39


@pytest.mark.parametrize("variant", FORMS)
def test_the_count_equals_the_closed_form(variant):
    found = {size: counted(variant, *size).total for size in SIZES}
    assert found == {(length, dim): FORMS[variant](length, dim) for length, dim in SIZES}
    if variant != "fnet":
        assert len(set(found.values())) == len(SIZES)


def test_levels_of_the_pyramid_are_counted():
    length, dim, width = 512, 32, 4.0  # tokens read level 1, whose nodes are two tokens apart
    low, high, tiles = length // BLOCK, length // (2 * BLOCK), length // BLOCK
    read = tiles * 2 * BLOCK * 3 * BLOCK
    build = (high + 2) * 2 * BLOCK * 4 * BLOCK
    collapse = ((low + 1) // 2 + 2) * 2 * (2 * BLOCK) * (2 * BLOCK)
    forward = read * dim + build * (dim + 1)  # one more column: the weights
    backward = read * (2 * dim + 1) + (build + collapse) * (dim + 1)
    settings = {"sigma": "fixed", "initial_sigma": width, "weights": "uniform"}
    expected = full(length, dim) + BATCH * (forward + backward)
    assert counted("contextpool", length, dim, **settings).total == expected


def test_an_operator_without_a_formula_is_listed_not_lost(monkeypatch):
    """The broken twin: a counter that does not know the pooling counts the control without it, and says so."""
    for name in ("dense", "dense_backward"):
        monkeypatch.delitem(flop_registry, getattr(torch.ops.contextpool, name))
    count = counted("contextpool", 128, 32)
    assert count.total == convolutions_and_full(128, 32)
    assert {"contextpool.dense": 1, "contextpool.dense_backward": 1}.items() <= count.uncounted.items()


def test_a_form_that_forgets_a_product_is_told_apart():
    wrong = projections(128, 32) + BATCH * 6 * 2 * 128 * 128 * 32
    assert counted("full", 128, 32).total != wrong
