# SPDX-License-Identifier: Apache-2.0
"""Checks of parameters, random state, options and optional methods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attention_zoo.base import LayerDims, OptionError, SequenceMixer
from attention_zoo.checks.helpers import (
    DIM,
    LONG,
    SEED,
    SHORT,
    assert_close,
    build,
    difference,
    make_dims,
    mix,
    scattered_mask,
    tokens,
    weighted_sum,
)
from attention_zoo.registry import VariantSpec


def check_determinism(spec: VariantSpec) -> None:
    """Neither the global seed nor earlier calls may matter in evaluation; in training the seed must fix dropout."""
    mixer = build(spec, make_dims(dropout=0.3))
    x, mask = tokens(LONG), scattered_mask(LONG)
    with torch.random.fork_rng():
        first = _seeded(mixer, x, mask, seed=1)
        assert torch.equal(first, _seeded(mixer, x, mask, seed=2)), "evaluation depends on the global seed"
        mixer.train()
        drawn = _seeded(mixer, x, mask, seed=1)
        assert torch.equal(drawn, _seeded(mixer, x, mask, seed=1)), (
            "training gives different results under the same global seed"
        )
        redrawn = _seeded(mixer, x, mask, seed=2)
        assert difference(redrawn[mask], drawn[mask]) > 0, "dropout has no effect in training"
        mixer.eval()
        assert torch.equal(first, _seeded(mixer, x, mask, seed=1)), (
            "evaluation gives another result after a pass in training mode"
        )
        twin = build(spec, make_dims(dropout=0.3))
        _seeded(twin, tokens(SHORT, seed=SEED + 1), scattered_mask(SHORT), seed=1)
        assert torch.equal(first, _seeded(twin, x, mask, seed=1)), (
            "evaluation depends on earlier calls: keep nothing of them in attributes"
        )


def _seeded(mixer: SequenceMixer, x: Tensor, mask: Tensor, *, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return mix(mixer, x, mask).detach()


def check_gradients(spec: VariantSpec) -> None:
    """Every parameter must get a finite gradient that is not zero everywhere, from sums with an order of their own."""
    mixer = build(spec).train()
    x = tokens(LONG).requires_grad_()
    named = {name: parameter for name, parameter in mixer.named_parameters() if parameter.requires_grad}
    with torch.random.fork_rng(), _UnorderedSums() as unordered:
        loss = weighted_sum(mix(mixer, 1.0 * x, scattered_mask(LONG)).square())
        penalty = mixer.auxiliary_loss()
        _, *gradients = torch.autograd.grad(
            loss if penalty is None else loss + penalty.sum(), [x, *named.values()], allow_unused=True
        )
    assert not unordered.found, (
        "places of a tensor that are indexed several times get their gradients in an order that threads decide; "
        "take them with torch.nn.functional.embedding or index_select"
    )
    for name, gradient in zip(named, gradients, strict=True):
        assert gradient is not None, f"parameter {name} gets no gradient"
        assert gradient.any(), f"parameter {name} gets a gradient that is zero everywhere"
        assert gradient.isfinite().all(), f"parameter {name} gets a gradient with NaN or infinity"


class _UnorderedSums(TorchDispatchMode):
    """Notes sums into places of a tensor by index, some of them more than once: several threads add in any order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if str(func).startswith(("aten.index_put", "aten._index_put", "aten.put")) and len(args) > 3 and args[3]:
            indices = args[1] if isinstance(args[1], Sequence) else [args[1]]  # one for `put`, as of `take`
            places = [each for each in indices if each is not None and each.dtype != torch.bool]
            rows = torch.stack([each.flatten() for each in torch.broadcast_tensors(*places)]) if places else None
            self.found |= rows is not None and rows.unique(dim=1).shape[1] < rows.shape[1]
        return func(*args, **(kwargs or {}))


def check_state_dict(spec: VariantSpec) -> None:
    """A mixer with another seed must compute the same bits once it has loaded the state, random state included."""
    mixer, twin = build(spec), build(spec, seed=SEED + 1)
    state = {name: value.clone() for name, value in mixer.state_dict().items()}
    twin.load_state_dict(state, strict=True)
    for length in (SHORT, LONG):
        x, mask = tokens(length), scattered_mask(length)
        same = torch.equal(mix(mixer, x, mask), mix(twin, x, mask))
        assert same, "the state dict is not complete: a mixer that loads it gives another result (register a buffer)"


def check_independent_instances(spec: VariantSpec) -> None:
    """Two mixers must share no memory, and mixers of two sizes must work in one process."""
    mixer = build(spec, dtype=torch.float32)  # the dtype of construction: a conversion would unshare buffers
    x, mask = tokens(LONG, dtype=torch.float32), scattered_mask(LONG)
    before = mix(mixer, x, mask)
    twin = build(spec, dtype=torch.float32, seed=SEED + 1)
    shared = _storages(mixer) & _storages(twin)
    assert not shared, f"two mixers share memory: {', '.join(sorted(name for name, _ in shared))}"
    wider = build(spec, LayerDims(dim=24, num_heads=3, max_length=LONG + SHORT))
    wide_x = torch.nn.functional.pad(tokens(LONG + SHORT), (0, 24 - DIM))
    assert mix(wider, wide_x).shape == wide_x.shape, (
        "a mixer of a second size in the same process gives the wrong shape"
    )
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(before, mix(mixer, x, mask)), "a mixer changes when another one does"


def _storages(mixer: SequenceMixer) -> set[tuple[str, int]]:
    named = [*mixer.named_parameters(), *mixer.named_buffers()]
    return {(name, tensor.untyped_storage().data_ptr()) for name, tensor in named if tensor.numel()}


def check_config(spec: VariantSpec) -> None:
    """Options must survive JSON, have a help text, and be refused if they are unknown."""
    config = spec.config()
    options = json.loads(json.dumps(config.to_dict()))
    assert spec.config.from_dict(options) == config, f"options change when they are written to JSON and read: {options}"
    silent = [name for name, _, _, text in spec.config.describe() if not text]
    assert not silent, f"options without a help text: {', '.join(silent)}"
    try:
        spec.config.from_dict({"no_such_option": 1})
    except OptionError:
        return
    raise AssertionError("from_dict must raise OptionError for an unknown option")


def check_hooks(spec: VariantSpec) -> None:
    """The optional methods must return what they promise: a scalar loss or None, scalar statistics without a graph."""
    mixer = build(spec).train()
    with torch.random.fork_rng():
        out = mix(mixer, tokens(LONG), scattered_mask(LONG))
    penalty = mixer.auxiliary_loss()
    if penalty is not None:
        assert penalty.dim() == 0, f"auxiliary_loss must be a scalar, has shape {tuple(penalty.shape)}"
        assert penalty.isfinite(), "auxiliary_loss is NaN or infinite"
        assert penalty.requires_grad, "auxiliary_loss has no gradient"
    for name, value in mixer.statistics().items():
        assert value.dim() == 0, f"statistic {name} must be a scalar, has shape {tuple(value.shape)}"
        assert not value.requires_grad, f"detach statistic {name}: it requires a gradient"
    assert isinstance(mixer.resolved_backend(out.device), str), "resolved_backend must return a name"
    kept = [mixer.state_size(length) for length in (SHORT, LONG)]
    assert kept == [None, None] or all(type(size) is int and size >= 0 for size in kept), (
        f"state_size must return a number that is not negative, or None at every length, got {kept}"
    )
    mixer.after_step()
    mixer.eval()
    once = mix(mixer, tokens(LONG))
    mixer.after_step()
    assert_close(mix(mixer, tokens(LONG)), once, "after_step changes the result without an optimiser step")
