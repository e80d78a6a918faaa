"""Linformer, Nyström attention, Luna and Skyformer against their formulas on whole matrices, and at their limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import LayerDims, SequenceMixer, get_variant
from attention_zoo.checks import contract_checks
from attention_zoo.functional import attention
from attention_zoo.variants.nystrom import pseudo_inverse, segment_means
from attention_zoo.variants.skyformer import ridge_inverse, spread

LENGTH, DIM, HEADS = 90, 16, 2


def make(name: str, *, length: int = LENGTH, **options: object) -> SequenceMixer:
    torch.manual_seed(0)
    spec = get_variant(name)
    dims = LayerDims(dim=DIM, num_heads=HEADS, max_length=length)
    return spec.build(spec.config.from_dict(options), dims).double()


def inputs(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(3, length, DIM, dtype=torch.float64)
    mask = torch.rand(3, length) > 0.3
    mask[2] = False
    return x, mask


def assert_same(mixer: SequenceMixer, naive, x: Tensor, mask: Tensor | None) -> None:
    """Outputs, and gradients of the input and of every parameter, are equal."""
    x = x.clone().requires_grad_()
    named = {"x": x, **dict(mixer.named_parameters())}
    outs = mixer(x, mask), naive(mixer, x, mask)
    torch.testing.assert_close(*outs)
    assert outs[0].abs().max() > 1e-3
    gradients = [torch.autograd.grad(out.sin().sum(), tuple(named.values())) for out in outs]
    for name, first, second in zip(named, *gradients, strict=True):
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")


def softmax(scores: Tensor) -> Tensor:
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def naive_linformer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    real = torch.ones(x.shape[:2]).double() if mask is None else mask.double()
    e = mixer.key_mixture[:, :, : x.shape[1]]
    f = e if mixer.value_mixture is None else mixer.value_mixture[:, :, : x.shape[1]]
    e, f = (mixture.expand(HEADS, -1, -1) for mixture in (e, f))
    keys = torch.einsum("hrn,bn,bhnd->bhrd", e, real, k)
    values = torch.einsum("hrn,bn,bhnd->bhrd", f, real, v)
    return mixer.projections.merge(softmax(q @ keys.transpose(-2, -1) * q.shape[-1] ** -0.5) @ values, mask)


def naive_luna(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    scale = q.shape[-1] ** -0.5
    out = []
    for row in range(len(x)):
        real = slice(None) if mask is None else mask[row]
        keys, values = k[row][:, real], v[row][:, real]
        if keys.shape[1] == 0:
            out.append(torch.zeros_like(x[row]))
            continue
        packed = softmax(mixer.memory @ keys.transpose(-2, -1) * scale) @ values
        packed = packed.transpose(0, 1).flatten(1)
        keys, values = (
            linear(packed).unflatten(1, (HEADS, -1)).transpose(0, 1)
            for linear in (mixer.unpack_key, mixer.unpack_value)
        )
        heads = softmax(q[row] @ keys.transpose(-2, -1) * scale) @ values
        out.append(mixer.projections.merge(heads[None], None if mask is None else mask[row : row + 1])[0])
    return torch.stack(out)


def naive_segments(real: int, num_landmarks: int) -> Tensor:
    """Return (landmarks, real): each landmark the mean of its run of tokens."""
    landmarks = min(real, num_landmarks)
    of = torch.tensor([token * landmarks // real for token in range(real)])
    member = (of == torch.arange(landmarks)[:, None]).double()
    return member / member.sum(1, keepdim=True)


def naive_nystrom(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Sequence by sequence, on the real tokens alone."""
    q, k, v = mixer.projections.split(x)
    config, out = mixer.config, []
    for row in range(len(x)):
        real = torch.arange(x.shape[1]) if mask is None else mask[row].nonzero()[:, 0]
        heads = torch.zeros_like(v[row])
        if len(real):
            queries, keys, values = (t[row][:, real] for t in (q, k, v))
            queries = queries * queries.shape[-1] ** -0.5
            means = naive_segments(len(real), config.num_landmarks)
            first = softmax(queries @ (means @ keys).transpose(-2, -1))
            third = softmax(means @ queries @ keys.transpose(-2, -1))
            inner = softmax(means @ queries @ (means @ keys).transpose(-2, -1))
            if len(real) > config.num_landmarks:
                first = first @ torch.stack([naive_pseudo_inverse(each, config.pinv_iterations) for each in inner])
            heads = heads.index_copy(1, real, first @ third @ values)
            if mixer.conv is not None:
                kernel = mixer.conv.weight[:, 0, :, 0]
                place = torch.arange(x.shape[1])
                offset = place[None, real] - place[:, None] + kernel.shape[1] // 2
                inside = (offset >= 0) & (offset < kernel.shape[1])
                taps = kernel[:, offset.clamp(0, kernel.shape[1] - 1)] * inside
                heads = heads + taps @ values
        out.append(mixer.projections.merge(heads[None], None if mask is None else mask[row : row + 1])[0])
    return torch.stack(out)


def naive_pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Expand the polynomial of the paper: one matrix, no nesting."""
    inverse = matrix.T / (matrix.abs().sum(0).max() * matrix.abs().sum(1).max())
    for _ in range(iterations):
        residual = matrix @ inverse
        inverse = (
            13 * inverse
            - 15 * inverse @ residual
            + 7 * inverse @ residual @ residual
            - inverse @ residual @ residual @ residual
        ) / 4
    return inverse


def naive_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (-(x[..., :, None, :] - y[..., None, :, :]).square().sum(-1) / 2).exp()


def naive_skyformer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Sequence by sequence, on the real tokens alone; the inverse by powers of its residual."""
    q, k, v = mixer.projections.split(x)
    q, k = (t * t.shape[-1] ** -0.25 for t in (q, k))
    config, out = mixer.config, []
    for row in range(len(x)):
        real = torch.arange(x.shape[1]) if mask is None else mask[row].nonzero()[:, 0]
        heads = torch.zeros_like(v[row])
        if len(real):
            queries, keys, values = (t[row][:, real] for t in (q, k, v))
            number = min(config.num_landmarks // 2, len(real))
            chosen = [int((i + 0.5) * len(real) / number) for i in range(number)]
            landmarks = torch.cat((queries[:, chosen], keys[:, chosen]), dim=1)
            inner = naive_kernel(landmarks, landmarks) + config.ridge * torch.eye(2 * number)
            root = torch.diag_embed(inner.sum(-1).rsqrt())
            residual = torch.eye(2 * number) - root @ inner @ root
            terms = [torch.linalg.matrix_power(residual, power) for power in range(3**config.inverse_iterations)]
            inverse = root @ torch.stack(terms).sum(0) @ root
            mixed = naive_kernel(queries, landmarks) @ inverse @ naive_kernel(landmarks, keys) @ values
            heads = heads.index_copy(1, real, mixed)
        out.append(mixer.projections.merge(heads[None], None if mask is None else mask[row : row + 1])[0])
    return torch.stack(out)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "naive", "options"),
    [
        ("linformer", naive_linformer, {}),
        ("linformer", naive_linformer, {"rank": 5, "share": "none", "rotary": True}),
        ("linformer", naive_linformer, {"share": "key_value"}),
        ("luna", naive_luna, {"num_memory": 16}),
        ("luna", naive_luna, {"num_memory": 3, "rotary": True}),
        ("nystrom", naive_nystrom, {"num_landmarks": 7}),
        ("nystrom", naive_nystrom, {"num_landmarks": 61, "conv_kernel": 0}),
        ("nystrom", naive_nystrom, {"num_landmarks": 30, "conv_kernel": 3, "pinv_iterations": 2, "rotary": True}),
        ("skyformer", naive_skyformer, {"num_landmarks": 8, "inverse_iterations": 2}),
        ("skyformer", naive_skyformer, {"num_landmarks": 80, "inverse_iterations": 2, "rotary": True}),
        ("skyformer", naive_skyformer, {"num_landmarks": 256, "inverse_iterations": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_equals_the_formula_in_outputs_and_gradients(name, naive, options, masked):
    x, mask = inputs()
    x, mask = x[:, :-4], mask[:, :-4]  # shorter than max_length
    assert_same(make(name, **options), naive, x, mask if masked else None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linformer", {"share": "none", "rank": 5}),
        ("linformer", {"share": "key_value"}),
        ("luna", {"num_memory": 4}),
        ("nystrom", {"num_landmarks": 4, "conv_kernel": 0}),
        ("nystrom", {"num_landmarks": 256}),
        ("skyformer", {"num_landmarks": 6}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_other_options_keep_the_contract(name, options, monkeypatch):
    spec = get_variant(name)
    original = spec.config.__init__
    monkeypatch.setattr(spec.config, "__init__", lambda self, **given: original(self, **(options | given)))
    checks = contract_checks(spec)
    assert len(checks) >= 20
    for check, run in checks:
        if check != "memory":  # 256 landmarks are a quarter of the lengths that it compares
            run()


def full_like(mixer: SequenceMixer) -> SequenceMixer:
    spec = get_variant("full")
    full = spec.build(spec.config(), mixer.dims).double()
    full.load_state_dict(mixer.projections.state_dict(prefix="projections."))
    return full


def test_linformer_with_identity_mixtures_is_full_attention():
    mixer = make("linformer", rank=LENGTH)
    for mixture in (mixer.key_mixture, mixer.value_mixture):
        nn.init.eye_(mixture.data[0])
    x, _ = inputs()
    torch.testing.assert_close(mixer(x), full_like(mixer)(x))


def test_linformers_share_no_mixtures():
    first, second = make("linformer"), make("linformer")
    assert first.key_mixture is not second.key_mixture
    assert first.key_mixture.data_ptr() != second.key_mixture.data_ptr()


def test_nystrom_is_full_attention_only_for_sequences_with_no_more_tokens_than_landmarks():
    x, _ = inputs()
    mask = torch.arange(LENGTH) < torch.tensor([20, 40, LENGTH])[:, None]
    mixer = make("nystrom", num_landmarks=40, conv_kernel=0)
    approximate, full = mixer(x, mask), full_like(mixer)(x, mask)
    torch.testing.assert_close(approximate[:2], full[:2])
    assert not torch.allclose(approximate[2], full[2], rtol=1e-3)


def test_nystrom_with_a_landmark_for_each_kind_of_token_is_close_to_full_attention():
    """Eight runs of nearly equal tokens: eight landmarks tell them apart, two do not."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, DIM, dtype=torch.float64).repeat_interleave(11, dim=1)
    x = x + 0.1 * torch.randn(x.shape, dtype=torch.float64)
    errors = []
    for num_landmarks in (2, 8):
        mixer = make("nystrom", num_landmarks=num_landmarks, conv_kernel=0, pinv_iterations=20)
        exact = full_like(mixer)(x)
        errors.append(((mixer(x) - exact).norm() / exact.norm()).item())
    assert errors[0] > 0.1, errors
    assert errors[1] < 0.01, errors


def test_segments_are_of_real_tokens_and_nearly_equal():
    _, mask = inputs()
    weights, used = segment_means(mask, 7, torch.float64)
    assert weights.shape == (3, 1, 7, LENGTH)
    assert not weights[~mask[:, None, None, :].expand_as(weights)].any()
    torch.testing.assert_close(weights.sum(-1), used[:, None].double())
    sizes = (weights[:2] > 0).sum(-1)
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(sizes.sum(-1)[:, 0], mask[:2].sum(1))


def test_pseudo_inverse_converges_and_minds_no_neighbour():
    torch.manual_seed(0)
    matrices = torch.randn(3, 2, 6, 6, dtype=torch.float64).softmax(-1)
    matrices[1] *= 50.0
    matrices[2, 1] = 0.0
    found = pseudo_inverse(matrices, 30)
    torch.testing.assert_close(found, torch.linalg.pinv(matrices))
    for row in range(3):
        assert torch.equal(pseudo_inverse(matrices[row : row + 1], 4)[0], pseudo_inverse(matrices, 4)[row])


def test_luna_with_one_vector_gives_every_token_the_same():
    """One packed vector has all the weight of the second step, so what comes out does not depend on the query."""
    mixer = make("luna", num_memory=1)
    x, _ = inputs()
    out = mixer(x)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    _, k, v = mixer.projections.split(x)
    packed = attention(mixer.memory.expand(3, -1, -1, -1), k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out[:, 0], mixer.projections.out(mixer.unpack_value(packed))[:, 0])


@pytest.mark.parametrize("masked", [False, True])
def test_skyformer_with_all_tokens_as_landmarks_is_the_gaussian_kernel(masked):
    mixer = make("skyformer", num_landmarks=2 * LENGTH, ridge=1e-9, inverse_iterations=25)
    x, mask = inputs()
    real = mask if masked else torch.ones_like(mask)
    q, k, v = mixer.projections.split(x)
    weights = naive_kernel(q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25) * real[:, None, None, :]
    exact = mixer.projections.merge(weights @ v, real)
    out = mixer(x, mask if masked else None)
    assert exact.abs().max() > 1
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-5)


def test_skyformer_comes_closer_with_more_landmarks():
    x, _ = inputs()
    errors = []
    for num_landmarks in (4, 20, 80):
        mixer = make("skyformer", num_landmarks=num_landmarks, inverse_iterations=20)
        q, k, v = mixer.projections.split(x)
        exact = mixer.projections.merge(naive_kernel(q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25) @ v, None)
        errors.append(((mixer(x) - exact).norm() / exact.norm()).item())
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2], errors


def test_landmarks_are_spread_over_the_real_tokens():
    mask = torch.tensor([[True] * 10, [False, True] * 5, [False] * 10, [True] * 2 + [False] * 8])
    place, used = spread(mask, 4)
    assert place[0].tolist() == [1, 3, 6, 8]
    assert place[1].tolist() == [1, 3, 7, 9]
    assert place[3, :2].tolist() == [0, 1]
    assert used.sum(1).tolist() == [4, 4, 0, 2]


def test_ridge_inverse_converges():
    torch.manual_seed(0)
    points = torch.randn(2, 20, 3, dtype=torch.float64)
    matrix = naive_kernel(points, points)
    found = ridge_inverse(matrix, 0.01, 20)
    torch.testing.assert_close(found, torch.linalg.inv(matrix + 0.01 * torch.eye(20)))
