"""The checks themselves: each is shown a mixer with one fault, which that check and no other must report.

Every fault is a small change to full attention. Where a fault necessarily shows in a second check, the reason stands
beside it. Without these twins a check could pass because it looks at nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import (
    LayerDims,
    OptionError,
    QkvConfig,
    SequenceMixer,
    Traits,
    VariantConfig,
    VariantSpec,
    get_variant,
)
from attention_zoo.checks import CHECKS, contract_checks, run_contract, with_options
from attention_zoo.kernels.softmax import attend
from attention_zoo.masking import zero_masked
from attention_zoo.variants.full import FullAttention, FullConfig

TRAITS = Traits(memory="linear", complexity="O(n²)", causal=True, permutation_equivariant=True)


class ChangesItsInput(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x.detach().masked_fill_(~mask.unsqueeze(-1), 0.0)
        return super().forward(x, mask)


class DropsInEvaluation(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        heads = attend(q, k, v, mask, causal=self.dims.causal, dropout=self.dims.dropout, training=True)
        return self.projections.merge(heads, mask)


class NeverDrops(FullAttention):
    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, replace(dims, dropout=0.0))


class RemembersItsFirstInput(FullAttention):
    """Scales by a number of the first input that it has seen."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * self.__dict__.setdefault("scale", 1.0 + 0.1 * torch.tanh(x.detach().sum()))


class SkipsSuffixMasks(FullAttention):
    """Takes a short cut when all masked positions stand at the end: none of them is masked."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and mask[:, 0].all() and torch.equal(mask, mask.cummin(dim=1).values):
            mask = None
        return super().forward(x, mask)


class ReducesMasksToLengths(FullAttention):
    """Sees padding at the end only: holes before the last real token count as real."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, None if mask is None else mask.flip(1).cummax(dim=1).values.flip(1))


class LeaksBelowTolerance(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        return zero_masked(out + 1e-14 * x.mean(dim=1, keepdim=True), mask)


class SkipsThePreparation(FullAttention):
    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = nn.Module.__call__(self, x, mask)
        return out


class TransformsTheUnmasked(FullAttention):
    """Adds nothing to the stream, but multiplies what stands at masked positions by zero."""

    def transform_stream(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x if mask is None else x + 0.0 * (x * ~mask.unsqueeze(-1)).sum(dim=(1, 2), keepdim=True)


class LooksAtTheFirstToken(FullAttention):
    def transform_stream(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x if x[0, 0].is_floating_point() else x.float()


class ReadsAVersion(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) if self.projections.out.weight._version >= 0 else x


class ForgetsTheMaskWhenCausal(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return zero_masked(super().forward(x, None if self.dims.causal else mask), mask)


class ForgetsTheMaskBesideAPrefix(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return zero_masked(super().forward(x, None if self.dims.num_prefix else mask), mask)


class DiffersWithoutMask(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (1.001 if mask is None else 1.0)


class FillsEmptyRows(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        return out if mask is None else out.masked_fill(~mask.any(dim=1)[:, None, None], 1.0)


class EmptyRowsHaveNoGradient(FullAttention):
    """Zeros in the forward pass, and 0 times infinity in the backward pass."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        if mask is None:
            return out
        real = mask.sum(dim=1)[:, None, None].to(x.dtype)
        return torch.where(real > 0, out + 1e-14 * ((x * mask.unsqueeze(-1)).sum(1, keepdim=True) / real), 0.0)


class NormalisesOverTheBatch(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (1 + 1e-3 * zero_masked(x, mask).detach().abs().amax())


class FavoursTheFirstRow(FullAttention):
    """Each sequence alone is a first row too, and so is as it was: only reordering shows the fault."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        scale = torch.ones_like(out[:, :1, :1])
        scale[: len(out) // 3] = 1.001
        return out * scale


class DividesByThePaddedLength(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (1 + 1e-3 / x.shape[1])


class AddsPositions(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x + 0.01 * torch.arange(x.shape[1]).to(x).unsqueeze(-1), mask)


class IgnoresCausality(FullAttention):
    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, replace(dims, causal=False))


class LooksBack(FullAttention):
    """Takes causality for granted; its claims say that it has no causal form."""

    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, replace(dims, causal=True))


class MixesNothing(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        return self.projections.merge(
            nn.functional.dropout(v * (q * k).sigmoid(), self.dims.dropout, self.training), mask
        )


class MixesNothingWhenCausal(FullAttention):
    """The story of a published FAVOR module, whose causal form accumulates over the wrong axis."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.dims.causal:
            return super().forward(x, mask)
        q, k, v = self.projections.split(x)
        return self.projections.merge(v * (q * k).sigmoid(), mask)


class HasADeadParameter(FullAttention):
    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.unused = nn.Parameter(torch.zeros(3))


class IndexesATable(FullAttention):
    """Takes one number for each channel out of a table of four."""

    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.table = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * self.table[torch.arange(x.shape[-1], device=x.device) % 4]


class TakesFromATable(IndexesATable):
    """The same by another operator, whose gradients are added up as those of an index are."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return FullAttention.forward(self, x, mask) * self.table.take(torch.arange(x.shape[-1], device=x.device) % 4)


class HidesItsRandomState(FullAttention):
    pattern: Tensor

    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.register_buffer("pattern", torch.rand(dims.dim), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * self.pattern


class SharesABuffer(FullAttention):
    table = torch.ones(1)
    scale: Tensor

    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.register_buffer("scale", SharesABuffer.table)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * self.scale


class AcceptsAnyInput(FullAttention):
    def check_input(self, x: Tensor, mask: Tensor | None) -> None:
        pass


class FailsOnOneToken(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (torch.tensor(x.shape[1] - 1).log().isfinite().log() + 1).to(x)


class WritesAllScores(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        dims = self.dims
        heads = attend(
            q, k, v, mask, causal=dims.causal, dropout=dims.dropout, training=self.training, backend="reference"
        )
        return self.projections.merge(heads, mask)


class KeepsAllScores(FullAttention):
    """Goes query by query, so that no tensor is large, and keeps every score for backward all the same."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training or self.dims.causal:
            return super().forward(x, mask)
        q, k, v = self.projections.split(x)
        parts = [
            attend(part, k, v, mask, dropout=self.dims.dropout, training=True, backend="reference")
            for part in q.split(32, dim=2)
        ]
        return self.projections.merge(torch.cat(parts, dim=2), mask)


class ComputesInHalf(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        return out.half().to(x.dtype) if x.dtype == torch.float32 else out


class OverflowsInHalf(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (float("inf") if x.dtype == torch.bfloat16 else 1.0)


class DividesByATinyNumber(FullAttention):
    """A norm whose guard against zero is zero in float16."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        nothing = torch.zeros_like(x[:1, :1, :1])
        return super().forward(x, mask) + nothing / (nothing + 1e-12)


@dataclass(frozen=True, kw_only=True, slots=True)
class CarelessConfig(FullConfig):
    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "CarelessConfig":
        return cls(**{name: value for name, value in options.items() if name in ("rotary", "backend")})


@dataclass(frozen=True, kw_only=True, slots=True)
class SilentConfig(FullConfig):
    width: int = field(default=1)


class HasAVectorLoss(FullAttention):
    def auxiliary_loss(self) -> Tensor:
        return self.projections.query.weight.square().sum(dim=0)


class DecaysAfterEveryStep(FullAttention):
    def after_step(self) -> None:
        with torch.no_grad():
            self.projections.out.weight.mul_(0.99)


class ScalesWrongly(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        dims = self.dims
        heads = attend(
            q * 2, k, v, mask, causal=dims.causal, dropout=dims.dropout, training=self.training, backend="auto"
        )
        return self.projections.merge(heads, mask)


class HasAWrongBackend(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (1.001 if self.config.backend == "blockwise" else 1.0)


class HasAWrongGradient(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        return out + 0.001 * (out - out.detach()) if self.config.backend == "blockwise" else out


class LeavesMemoryUnwritten(FullAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        if self.config.backend != "blockwise":
            return out
        copy = torch.empty_like(out)
        copy[:, :-1] = out[:, :-1]
        return copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin:
    """A fault, the check that must report it, and the checks where it cannot but show as well, with the reason."""

    check: str
    mixer: type[SequenceMixer]
    traits: Traits = TRAITS
    config: type[VariantConfig] = FullConfig
    also: Mapping[str, str] = field(default_factory=dict)

    def spec(self) -> VariantSpec:
        return VariantSpec(name="twin", mixer=self.mixer, config=self.config, traits=self.traits, paper="")


TWINS = [
    Twin(check="shape", mixer=ChangesItsInput),
    Twin(check="determinism", mixer=DropsInEvaluation),
    Twin(check="determinism", mixer=NeverDrops),
    Twin(check="determinism", mixer=RemembersItsFirstInput),
    Twin(
        check="suffix_padding",
        mixer=SkipsSuffixMasks,
        also={"padding_length": "what reaches real positions from padding changes them when there is more of it"},
    ),
    Twin(
        check="scattered_padding",
        mixer=ReducesMasksToLengths,
        also={
            "padding_gradient": "content that reaches a result has a gradient",
            "permutation": "which token comes last depends on the order",
        },
    ),
    Twin(check="padding_gradient", mixer=LeaksBelowTolerance),
    Twin(
        check="padding_values", mixer=SkipsThePreparation, also={"lengths": "the preparation refuses what is too long"}
    ),
    Twin(check="padding_values", mixer=TransformsTheUnmasked),
    Twin(check="mask_none", mixer=DiffersWithoutMask),
    Twin(check="empty_rows", mixer=FillsEmptyRows),
    Twin(
        check="empty_rows",
        mixer=EmptyRowsHaveNoGradient,
        also={"backends": "compares gradients with a sequence without real tokens in the batch"},
    ),
    Twin(check="batch_independence", mixer=NormalisesOverTheBatch),
    Twin(check="batch_independence", mixer=FavoursTheFirstRow),
    Twin(check="padding_length", mixer=DividesByThePaddedLength),
    Twin(check="padding_length", mixer=FullAttention, traits=replace(TRAITS, padding_length_invariant=False)),
    Twin(check="permutation", mixer=AddsPositions),
    Twin(check="permutation", mixer=FullAttention, traits=replace(TRAITS, permutation_equivariant=False)),
    Twin(
        check="scattered_padding",
        mixer=ForgetsTheMaskWhenCausal,
        also={"padding_gradient": "what reaches real positions reaches their gradients"},
    ),
    Twin(
        check="scattered_padding",
        mixer=ForgetsTheMaskBesideAPrefix,
        also={"suffix_padding": "sees all padding", "padding_gradient": "and its gradient"},
    ),
    Twin(check="causal", mixer=IgnoresCausality),
    Twin(check="reach", mixer=MixesNothing),
    Twin(check="reach", mixer=MixesNothingWhenCausal),
    Twin(check="reach", mixer=FullAttention, traits=replace(TRAITS, mixes_tokens=False)),
    Twin(
        check="reach",
        mixer=LooksBack,
        traits=replace(TRAITS, causal=False, permutation_equivariant=False),
    ),
    Twin(check="gradients", mixer=HasADeadParameter),
    Twin(check="gradients", mixer=IndexesATable),
    Twin(check="state_dict", mixer=HidesItsRandomState),
    Twin(check="independent_instances", mixer=SharesABuffer),
    Twin(check="lengths", mixer=AcceptsAnyInput),
    Twin(check="lengths", mixer=FailsOnOneToken),
    Twin(check="empty_input", mixer=LooksAtTheFirstToken),
    Twin(check="memory", mixer=WritesAllScores),
    Twin(check="memory", mixer=KeepsAllScores),
    Twin(check="memory", mixer=FullAttention, traits=replace(TRAITS, memory="quadratic")),
    Twin(check="dtypes", mixer=ComputesInHalf),
    Twin(check="dtypes", mixer=OverflowsInHalf),
    Twin(check="dtypes", mixer=DividesByATinyNumber),
    Twin(check="inference", mixer=ReadsAVersion),
    Twin(check="config", mixer=FullAttention, config=CarelessConfig),
    Twin(check="config", mixer=FullAttention, config=SilentConfig),
    Twin(check="hooks", mixer=HasAVectorLoss),
    Twin(check="hooks", mixer=DecaysAfterEveryStep),
    Twin(check="exact_limit", mixer=ScalesWrongly, traits=replace(TRAITS, exact_limit=lambda _: {})),
    Twin(check="backends", mixer=HasAWrongBackend),
    Twin(check="backends", mixer=HasAWrongGradient),
    Twin(check="backends", mixer=LeavesMemoryUnwritten),
    Twin(check="gradients", mixer=TakesFromATable),
]


@pytest.mark.parametrize("twin", TWINS, ids=[f"{t.check}-{t.mixer.__name__}-{i}" for i, t in enumerate(TWINS)])
def test_the_check_catches_its_twin(twin: Twin) -> None:
    with pytest.raises(AssertionError):
        dict(contract_checks(twin.spec()))[twin.check]()


@pytest.mark.nightly
@pytest.mark.parametrize("twin", TWINS, ids=[f"{t.check}-{t.mixer.__name__}-{i}" for i, t in enumerate(TWINS)])
def test_the_check_and_no_other_catches_its_twin(twin: Twin) -> None:
    failures = run_contract(twin.spec())
    assert failures.keys() == {twin.check, *twin.also}, failures


def test_no_check_lacks_a_twin() -> None:
    assert {twin.check for twin in TWINS} == set(CHECKS)


def test_the_sound_mixer_passes_them_all() -> None:
    sound = Twin(check="", mixer=FullAttention, traits=replace(TRAITS, exact_limit=lambda _: {})).spec()
    assert {name for name, _ in contract_checks(sound)} == set(CHECKS)
    assert run_contract(sound) == {}


def test_causality_without_a_form_must_be_refused() -> None:
    """The registry refuses for every variant; a spec that does not is caught."""

    class Lenient(VariantSpec):
        def build(self, config: VariantConfig, dims: LayerDims) -> SequenceMixer:
            return self.mixer(config, dims)

    full = get_variant("full")
    lenient = Lenient(
        name="lenient", mixer=full.mixer, config=full.config, traits=replace(TRAITS, causal=False), paper=""
    )
    with pytest.raises(AssertionError, match="builds with causal=True"):
        CHECKS["causal"](lenient)


class TestWaivers:
    def test_a_waived_failure_passes(self) -> None:
        spec = Twin(check="", mixer=AddsPositions, traits=replace(TRAITS, waivers={"permutation": "on purpose"})).spec()
        dict(contract_checks(spec))["permutation"]()
        with pytest.raises(AssertionError):
            CHECKS["permutation"](spec)

    def test_an_idle_waiver_fails(self) -> None:
        spec = Twin(check="", mixer=FullAttention, traits=replace(TRAITS, waivers={"reach": "long gone"})).spec()
        with pytest.raises(AssertionError, match="long gone"):
            dict(contract_checks(spec))["reach"]()

    @pytest.mark.parametrize("name", ["no_such_check", "exact_limit"])
    def test_a_waiver_of_a_check_that_does_not_apply_is_an_error(self, name: str) -> None:
        spec = Twin(check="", mixer=FullAttention, traits=replace(TRAITS, waivers={name: "why not"})).spec()
        with pytest.raises(ValueError, match=name):
            contract_checks(spec)


def test_options_can_be_checked_that_are_not_the_defaults() -> None:
    traits = replace(TRAITS, exact_limit=lambda _: {})
    sound, wrong = (Twin(check="", mixer=mixer, traits=traits).spec() for mixer in (FullAttention, HasAWrongBackend))
    changed = with_options(wrong, {"backend": "blockwise"})
    assert changed.config().to_dict() == {"rotary": False, "bias": "none", "backend": "blockwise"}
    for check in ("exact_limit", "padding_values", "dtypes"):
        CHECKS[check](with_options(sound, {"backend": "blockwise"}))
    CHECKS["exact_limit"](wrong)  # sound as long as the backend is another one
    with pytest.raises(AssertionError, match="against full attention"):
        CHECKS["exact_limit"](changed)
    with pytest.raises(OptionError, match="unknown option"):
        with_options(sound, {"window": 3})


def test_backends_are_checked_only_where_offered() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Plain(QkvConfig):
        pass

    spec = Twin(check="", mixer=FullAttention, config=Plain).spec()
    assert "backends" not in {name for name, _ in contract_checks(spec)}
