from __future__ import annotations

import pytest
from click.testing import CliRunner, Result
from torch import Tensor

from attention_zoo import (
    LayerDims,
    RegistrationError,
    SequenceMixer,
    Traits,
    VariantConfig,
    available,
    get_variant,
    register_variant,
)
from attention_zoo import registry as registry_module
from runners.cli import variant_docs
from runners.cli.zoo import main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


class PassThroughConfig(VariantConfig):
    """No options."""


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a variant that hands masked positions through, for one test."""
    monkeypatch.setattr(registry_module, "_registered", dict(registry_module._registered))

    @register_variant(
        "leaky",
        traits=Traits(memory="linear", complexity="O(n)", causal=True, waivers={"determinism": "it has no dropout"}),
        paper="none: a test",
    )
    class Leaky(SequenceMixer):
        def __init__(self, config: PassThroughConfig, dims: LayerDims) -> None:
            super().__init__(config, dims)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            self.check_input(x, mask)
            return x.cumsum(dim=1)

    return "leaky"


def test_list_has_a_line_for_every_variant():
    result = run("list")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines()[2:]}
    usable = {spec.name for spec in variant_docs.catalogue()[0]}
    assert set(lines) == usable
    assert {"full", "adaptive_span", "mlp_only"} <= usable <= set(available())
    assert "Full attention" in lines["full"]
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_parameters_are_those_of_the_official_layer():
    # Four projections of 512 x 512 without biases.
    assert variant_docs._parameters(get_variant("full")) == 4 * 512 * 512
    adaptive = variant_docs.relative_parameters(get_variant("adaptive_span"))
    assert adaptive == 1 + 8 / (4 * 512 * 512)


def test_describe_prints_every_option_and_claim():
    result = run("describe", "Adaptive-Span")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("adaptive_span (Adaptive span): Sukhbaatar")
    options = get_variant("adaptive_span").config.describe()
    assert len(options) >= 5
    for name, kind, default, text in options:
        line = next(line for line in result.stdout.splitlines()[::-1] if line.startswith(f"{name} "))
        for part in (kind, repr(default), text):
            assert part in line
    for claim in ("built in", "Departures from the paper", "initial_span=1.0", "linear"):
        assert claim in result.stdout


def test_a_broken_plugin_is_named_and_hides_nothing(monkeypatch):
    def refuse(name: str):
        if name == "conv":
            raise RegistrationError("No module named 'missing'")
        return get_variant(name)

    monkeypatch.setattr(variant_docs, "get_variant", refuse)
    specs, problems = variant_docs.catalogue()
    assert "conv cannot be used: No module named 'missing'" in problems
    assert {"full", "mlp_only"} <= {spec.name for spec in specs}


def test_check_prints_a_line_per_check_and_passes():
    result = run("check", "mlp_only")
    assert result.exit_code == 0, result.output
    *checks, summary = result.stdout.splitlines()
    assert len(checks) >= 20
    assert all(line.startswith("ok    ") for line in checks)
    assert summary == f"mlp_only: {len(checks)} of {len(checks)} checks passed"


def test_check_fails_with_the_reason(leaky):
    result = run("check", leaky)
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert any(
        "scattered_padding: plain form, length 11: the content of scattered masked positions" in line for line in failed
    )
    assert any(line.startswith("waived determinism: it has no dropout") for line in result.stdout.splitlines())


@pytest.mark.parametrize("verb", ["check", "describe"])
def test_an_unknown_name_is_one_line_with_a_suggestion(verb):
    result = run(verb, "adaptiv_span")
    assert result.exit_code == 2
    assert result.stderr == "Error: unknown variant 'adaptiv_span'; did you mean 'adaptive_span'?\n"


def test_docs_writes_the_page(tmp_path, monkeypatch):
    specs = [get_variant(name) for name in ("full", "conv")]
    monkeypatch.setattr(variant_docs, "catalogue", lambda *, own_only: (specs, []))
    result = run("docs", "--out", str(tmp_path / "new" / "page.md"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "page.md").read_text() == variant_docs.page(specs)
    assert "2 variants" in result.stdout
