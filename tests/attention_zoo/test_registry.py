"""Names of variants: registration, look-up, and plug-ins of other distributions."""

import importlib
import pkgutil
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from attention_zoo import (
    LayerDims,
    OptionError,
    QkvConfig,
    RegistrationError,
    SequenceMixer,
    Traits,
    UnknownVariantError,
    VariantConfig,
    available,
    create,
    get_variant,
    program,
    register_variant,
    registry,
    variants,
)
from attention_zoo.registry import Family, plugin_origin, program_origin

TRAITS = Traits(memory="linear", complexity="O(n)", permutation_equivariant=True, mixes_tokens=False)

PLUGIN = """
    import torch
    from torch import Tensor
    from attention_zoo import LayerDims, SequenceMixer, Traits, VariantConfig, register_variant
    from attention_zoo.masking import zero_masked

    @register_variant("halver", traits=Traits(memory="linear", complexity="O(n)"), paper="none")
    class Halver(SequenceMixer):
        def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
            super().__init__(config, dims)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return zero_masked(x / 2, mask)
"""


class Identity(SequenceMixer):
    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in available():  # a file registers once, when it is imported: import none under the copy
        get_variant(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an installed distribution that announces three variants, and lies about two of them."""
    (tmp_path / "halver_plugin.py").write_text(textwrap.dedent(PLUGIN))
    info = tmp_path / "halver_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halver-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[attention_zoo.variants]\nhalver = halver_plugin\nabsent = halver_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "halver_plugin", raising=False)
    return tmp_path


def test_a_registered_class_is_found_with_its_options():
    register_variant("identity", traits=TRAITS, paper="none")(Identity)
    spec = get_variant("identity")
    assert (spec.mixer, spec.config, spec.traits, spec.paper) == (Identity, VariantConfig, TRAITS, "none")
    assert "identity" in available()


def test_every_own_variant_has_a_title_of_its_own():
    specs = [get_variant(name) for name in available() if not plugin_origin(name)]
    titles = [spec.title for spec in specs]
    assert len(titles) >= 39
    assert len({title.casefold() for title in titles}) == len(titles)
    for spec in specs:  # written beside the name: a derived title would be a forgotten one
        source = Path(sys.modules[spec.mixer.__module__].__file__).read_text()
        assert f'title="{spec.title}"' in source, spec.name


@pytest.mark.parametrize(("given", "title"), [("", "Near identity"), ("Nearly the Identity", "Nearly the Identity")])
def test_a_title_is_given_or_derived_from_the_name(given, title):
    register_variant("near_identity", title=given, traits=TRAITS, paper="none")(Identity)
    assert get_variant("near_identity").title == title


def test_a_plug_in_without_a_title_gets_a_derived_one(site):
    assert get_variant("halver").title == "Halver"


def test_every_built_in_variant_has_a_test_file_of_its_own():
    files = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "variants").glob("test_*.py")}
    own = {module.name for module in pkgutil.iter_modules(variants.__path__)}
    assert len(own) >= 24
    assert files - own == {"compile"}
    assert own <= files


@pytest.mark.parametrize("name", ["full", "Full", " FULL "])
def test_case_is_folded(name):
    assert get_variant(name).name == "full"


def test_dashes_are_folded():
    register_variant("near_identity", traits=TRAITS, paper="none")(Identity)
    assert get_variant("Near-Identity").mixer is Identity


def test_a_name_is_given_once():
    register_variant("identity", traits=TRAITS, paper="none")(Identity)
    register_variant("identity", traits=TRAITS, paper="none")(Identity)  # the same class may come again

    class Other(Identity):
        def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
            super().__init__(config, dims)

    with pytest.raises(RegistrationError, match=r"'identity' is registered by .*Identity; refused: .*Other"):
        register_variant("identity", traits=TRAITS, paper="none")(Other)
    assert get_variant("identity").mixer is Identity


@pytest.mark.parametrize(
    ("name", "home"), [("performer", "attention_zoo.variants.performer"), ("contextpool", "contextpool")]
)
def test_a_name_is_kept_for_a_variant_that_is_not_imported_yet(name, home):
    own = get_variant(name).mixer
    registry._registered.pop(name)
    with pytest.raises(RegistrationError, match=f"'{name}' is a variant of {home}; refused: .*Identity"):
        register_variant(name, traits=TRAITS, paper="none")(Identity)
    register_variant(name, traits=TRAITS, paper="none")(own)
    assert get_variant(name).mixer is own


@pytest.mark.parametrize("name", ["Identity", "near-identity", "2fast", "with space", ""])
def test_a_name_is_lower_snake_case(name):
    with pytest.raises(RegistrationError, match="lower snake case"):
        register_variant(name, traits=TRAITS, paper="none")(Identity)


def test_signatures_are_those_of_the_contract():
    class ExtraArgument(Identity):
        def __init__(self, config: VariantConfig, dims: LayerDims, rank: int = 3) -> None:
            super().__init__(config, dims)
            self.rank = rank

    class SwallowsArguments(Identity):
        def forward(self, x: Tensor, **options: int) -> Tensor:
            return x

    class UnannotatedConfig(Identity):
        def __init__(self, config, dims: LayerDims) -> None:
            super().__init__(config, dims)

    class WrongConfig(Identity):
        def __init__(self, config: dict, dims: LayerDims) -> None:
            super().__init__(config, dims)

    for wrong, message in (
        (ExtraArgument, r"expected __init__\(self, config, dims\)"),
        (SwallowsArguments, r"forward\(self, x, mask=None\)"),
        (UnannotatedConfig, "annotate `config`"),
        (WrongConfig, "annotate `config`"),
    ):
        with pytest.raises(RegistrationError, match=message):
            register_variant("wrong", traits=TRAITS, paper="none")(wrong)
    assert "wrong" not in available()


@pytest.mark.parametrize(("name", "message"), [("ful", "did you mean 'full'"), ("zzzzzz", "known: .*full")])
def test_an_unknown_name_comes_with_a_suggestion(name, message):
    with pytest.raises(UnknownVariantError, match=f"unknown variant '{name}'; {message}"):
        get_variant(name)


def test_causality_that_is_not_claimed_is_refused():
    register_variant("identity", traits=TRAITS, paper="none")(Identity)
    with pytest.raises(ValueError, match="'identity' has no causal form"):
        get_variant("identity").build(VariantConfig(), LayerDims(dim=4, num_heads=1, max_length=3, causal=True))


def test_a_plug_in_is_listed_without_being_imported_and_imported_when_named(site):
    assert "halver" in available()
    assert "halver_plugin" not in sys.modules
    assert get_variant("full").config is not QkvConfig
    assert "halver_plugin" not in sys.modules
    assert get_variant("halver").mixer.__module__ == "halver_plugin"
    assert plugin_origin("halver") == "halver-plugin 1.2"
    assert plugin_origin("full") == ""


@pytest.mark.parametrize(
    ("reference", "name"),
    [("attention_zoo.variants.full:FullAttention", "full"), ("contextpool.variant:ContextPoolMixer", "contextpool")],
)
def test_a_registered_variant_has_no_second_name(reference, name):
    """Under its class, it would be another run with the same numbers."""
    with pytest.raises(RegistrationError, match=f"is the variant {name}; one run has one name"):
        get_variant(reference)


def test_an_announced_variant_has_no_second_name(site):
    with pytest.raises(RegistrationError, match="is the variant halver; one run has one name"):
        get_variant("halver_plugin:Halver")


def test_a_plug_in_that_registers_another_name_than_it_announced_is_an_error(site):
    with pytest.raises(RegistrationError, match="nothing registers the name 'absent'"):
        get_variant("absent")


def test_a_plug_in_may_not_replace_a_built_in_variant(site):
    entry_points = site / "halver_plugin-1.2.dist-info" / "entry_points.txt"
    entry_points.write_text("[attention_zoo.variants]\nfull = halver_plugin\n")
    with pytest.warns(UserWarning, match="plug-in 'halver_plugin' may not replace the built-in 'full'; ignored"):
        names = available()
    assert names.count("full") == 1
    assert get_variant("full").mixer.__module__ == "attention_zoo.variants.full"
    assert "halver_plugin" not in sys.modules


def edited(site: Path, old: str, new: str, file: str = "halver_plugin.py") -> None:
    """Edit a plug-in, and forget it as a new process would."""
    text = (site / file).read_text()
    assert old in text
    (site / file).write_text(text.replace(old, new) + "# edited\n")  # of another size than its old bytecode
    for module in ("halver_plugin", "halver_helper"):
        sys.modules.pop(module, None)
    registry._registered.pop("halver", None)
    program.program_of.cache_clear()
    program._imported.clear()


def test_an_edited_plug_in_is_another_program(site):
    (site / "halver_helper.py").write_text("HALF = 2\n")
    edited(site, "import torch\n", "import torch\nfrom halver_helper import HALF\n")
    before = program_origin("halver", VariantConfig())
    assert before.startswith("halver-plugin 1.2 source ")
    edited(site, "x / 2", "x  /  2")
    assert program_origin("halver", VariantConfig()) == before
    edited(site, "x  /  2", "x / 3")
    after = program_origin("halver", VariantConfig())
    edited(site, "HALF = 2", "HALF = 3", "halver_helper.py")
    assert len({before, after, program_origin("halver", VariantConfig())}) == 3


def test_a_variant_around_a_plug_in_has_its_program(site):
    config = get_variant("contextpool").config
    before = program_origin("contextpool", config(base="halver"))
    assert before == program_origin("halver", VariantConfig())
    edited(site, "x / 2", "x / 3")
    assert program_origin("contextpool", config(base="halver")) not in (before, "")
    assert program_origin("contextpool", config()) == ""


def test_own_variants_have_no_program_but_the_numerics_version():
    own = [name for name in available() if not plugin_origin(name)]
    assert len(own) >= 39
    assert {program_origin(name, get_variant(name).config()) for name in own} == {""}


def test_where_a_class_is_registered_is_part_of_its_program(site, monkeypatch):
    """The call may be in another file than the class, and change what it computes."""
    programs = set()
    for factor in (2, 3):
        registry._registered.pop("identity", None)
        monkeypatch.delitem(sys.modules, "registrar", raising=False)
        (site / "registrar.py").write_text(
            "from attention_zoo import Traits, register_variant\n"
            "from tests.attention_zoo.test_registry import TRAITS, Identity\n"
            f"Identity.factor = {factor}{' ' * factor}\n"
            "register_variant('identity', traits=TRAITS, paper='none')(Identity)\n"
        )
        importlib.import_module("registrar")
        program.program_of.cache_clear()  # as in a new process
        program._imported.clear()
        programs.add(program_origin("identity", VariantConfig()))
    assert len(programs) == 2


def test_a_class_without_a_file_is_refused_in_one_line():
    namespace = {"__name__": "typed_in", "Identity": Identity, "VariantConfig": VariantConfig, "LayerDims": LayerDims}
    code = """
class Typed(Identity):
    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
"""
    exec(code, namespace)
    register_variant("typed", traits=TRAITS, paper="none")(namespace["Typed"])
    with pytest.raises(RegistrationError, match=r"typed: its source cannot be found, .*; put it into a file"):
        program_origin("typed", VariantConfig())


def test_a_mixer_is_built_by_name_without_a_harness():
    mixer = create("nystrom", {"num_landmarks": 8}, dim=64, num_heads=4, max_length=256)
    assert mixer.config.num_landmarks == 8
    assert mixer(torch.randn(2, 256, 64), torch.rand(2, 256) > 0.1).shape == (2, 256, 64)
    with pytest.raises(OptionError, match="did you mean 'num_landmarks'"):
        create("nystrom", {"num_landmark": 8}, dim=64, num_heads=4, max_length=256)
    with pytest.raises(ValueError, match="has no causal form"):
        create("nystrom", dim=64, num_heads=4, max_length=256, causal=True)


def test_every_variant_of_this_project_has_a_family_and_a_foreign_one_is_other(tmp_path):
    families = {name: get_variant(name).family for name in available() if not plugin_origin(name)}
    assert len(families) >= 39
    assert set(families.values()) == set(get_args(Family)) - {"other"}
    assert families["contextpool_conv_only"] == families["mlp_only"] == "control"
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nclass Mine(nn.Module):\n    def forward(self, x): return x\n"
    )
    assert get_variant(f"{tmp_path / 'mine.py'}:Mine").family == "other"
