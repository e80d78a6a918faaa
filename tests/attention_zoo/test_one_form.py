"""Options that make the same module have one form, and so one run id: searched for over all variants."""

from dataclasses import replace

import pytest
import torch

from attention_zoo import available, get_variant
from attention_zoo.base import LayerDims
from attention_zoo.registry import is_own

LENGTH, SHORT = 24, 15
DIMS = LayerDims(dim=12, num_heads=2, max_length=LENGTH, num_prefix=1)
ELSEWHERE = {
    "local": [{"window": 8}],
    "longformer": [{"window": 8}],
    "mega": [{}, {"key_dim": 4}],
    "mra": [{"block_size": 4, "blocks_per_row": 2}],
    "performer": [{}, {"kernel": "softmax"}],
    "hgrn": [{}, {"kind": "rg_lru"}],
    "mamba": [{}, {"state_size": 3}],
    "contextpool": [{}, {"base": "lru"}, {"base": "contextpool", "base_options": {"base": "lru", "hidden": 5}}],
}
"""Options beside the one that is searched, so that it matters at this length, and on which its default depends."""
DERIVED = {
    "adaptive_span.ramp", "contextpool.hidden", "contextpool.initial_length", "contextpool.reference_length",
    "contextpool_conv_only.hidden", "gau.width", "hgrn.state_size", "longformer.num_global", "lru.state_size",
    "mamba.inner_size", "mega.chunk", "mega.key_dim", "mega.value_dim", "multiscale_conv.kernel_size",
    "performer.num_features", "s5.state_size", "tnn.width",
}  # fmt: skip
"""Options of which a value written out makes the module of their default, as found by the search below."""

VARIANTS = [name for name in available() if is_own(name)]
CASES = [
    (name, options, causal)
    for name in VARIANTS
    for options in ELSEWHERE.get(name, [{}])
    for causal in ((False, True) if get_variant(name).traits.causal else (False,))
]


def fingerprint(spec, config, dims):
    """Return all that tells a module: its weights, what it computes with and without padding, before and after a step.

    None if it cannot be built.
    """
    torch.manual_seed(0)
    try:
        mixer = spec.build(config, dims)
    except ValueError:
        return None
    x = torch.randn(2, LENGTH, dims.dim)
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [SHORT]])
    torch.manual_seed(1)
    found = [*mixer.state_dict().values(), mixer.transform_stream(x, mask), mixer(x, mask), mixer(x[:, :SHORT])]
    mixer.after_step()
    return [each.detach() for each in (*found, mixer(x))]


def same(one, other):
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "options", "causal"), [case for case in CASES if any(path.startswith(f"{case[0]}.") for path in DERIVED)]
)
def test_defaults_written_out_make_the_same_module_and_have_one_form(name, options, causal):
    spec, dims = get_variant(name), replace(DIMS, causal=causal, layer=1)
    config = spec.config.from_dict(options)
    written = config.resolved(dims)
    assert same(fingerprint(spec, config, dims), fingerprint(spec, written, dims))
    assert written.resolved(dims) == written
    assert written.in_one_form(dims) == config.in_one_form(dims) == config


def open_defaults(spec):
    """Yield the integer options whose default is 0 or none, which may stand for something else."""
    for name, kind, default, _ in spec.config.describe():
        if default is None or (default == 0 and kind == "int"):
            yield name


@pytest.mark.nightly
def test_no_value_written_out_makes_the_module_of_a_default_in_another_form():
    found = set()
    for name, options, causal in CASES:
        spec, dims = get_variant(name), replace(DIMS, causal=causal, layer=1)
        config = spec.config.from_dict(options)
        usual = fingerprint(spec, config, dims)
        for option in open_defaults(spec):
            if option in options or option == "redraw_interval":  # acts only after so many steps
                continue
            for value in (*range(1, LENGTH + 2), 256):
                try:
                    other = replace(config, **{option: value})
                except ValueError:
                    continue
                made = fingerprint(spec, other, dims)
                equal = made is not None and same(usual, made)
                assert equal == (other.in_one_form(dims) == config), (name, options, causal, option, value)
                if equal:
                    found.add(f"{name}.{option}")
    assert found == DERIVED
