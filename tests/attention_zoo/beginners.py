"""Mistakes of somebody who writes a first variant, each with the check that finds it and what must be said."""

from dataclasses import dataclass

SOUND = """
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from dataclasses import dataclass
from attention_zoo import LayerDims, SequenceMixer, Traits, VariantConfig, option, register_variant
from attention_zoo.masking import masked_mean, zero_masked


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(VariantConfig):
    share: float = option(0.5, "share of the own value")


@register_variant("beginner", paper="", traits=Traits(memory="linear", complexity="O(n)", permutation_equivariant=True))
class Beginner(SequenceMixer):
    config: Config

    def __init__(self, config: Config, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.value = nn.Linear(dims.dim, dims.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.check_input(x, mask)
        value = self.value(x)
        value = self.config.share * value + masked_mean(value, mask)[:, None, :]
        value = F.dropout(value, self.dims.dropout, self.training)
        return zero_masked(value, mask)
"""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A change of the sound file."""

    name: str
    old: str
    new: str
    check: str
    """The check that finds it; empty: the variant cannot be imported."""
    said: str
    """What its line must hold."""


def _m(name: str, old: str, new: str, check: str, said: str) -> Mistake:
    assert old in SOUND, name
    return Mistake(name=name, old=old, new=new, check=check, said=said)


_VALUE = "        value = self.value(x)\n"
_INIT = "        super().__init__(config, dims)\n"
_LINEAR = "nn.Linear(dims.dim, dims.dim)"
_RETURN = "return zero_masked(value, mask)"
_OPTION = '    share: float = option(0.5, "share of the own value")\n'
MISTAKES = [
    # The file cannot be imported.
    _m("syntax error", "def forward(self, x", "def forward(self x", "", "SyntaxError"),
    _m("package that is not there", "import torch\n", "import torhc\n", "", "install it, or correct the import"),
    _m("name that does not exist", "zero_masked\n\n", "zero_mask\n\n", "", "install it, or correct the import"),
    _m(
        "no traits",
        ', traits=Traits(memory="linear", complexity="O(n)", permutation_equivariant=True)',
        "",
        "",
        "register_variant(NAME, traits=Traits(...), paper=...)",
    ),
    _m("no memory in traits", 'memory="linear", ', "", "", "Traits(memory='linear', complexity='O(n)', ...)"),
    _m("unknown trait", 'memory="linear"', 'memori="linear"', "", "'memori'"),
    _m(
        "no decorator",
        "@register_variant(",
        "(lambda *a, **k: 0)(",
        "",
        "decorate the class with @register_variant('beginner'",
    ),
    _m("another name in the decorator", '"beginner"', '"beginer"', "", "nothing registers the name 'beginner'"),
    _m("name with a dash", '"beginner"', '"be-ginner"', "", "must be lower snake case"),
    _m(
        "more arguments",
        "config: Config, dims: LayerDims)",
        "config: Config, dims: LayerDims, rank=3)",
        "",
        "expected __init__(self, config, dims)",
    ),
    _m("swallowed arguments", "mask: Tensor | None = None", "**kwargs: object", "", "forward(self, x, mask=None)"),
    _m("options without annotation", "config: Config, dims", "config, dims", "", "annotate `config`"),
    _m("options of another class", "class Config(VariantConfig)", "class Config", "", "annotate `config`"),
    _m("error in the module", "@dataclass", "1 / 0\n\n\n@dataclass", "", "ZeroDivisionError"),
    # It cannot be built.
    _m(
        "error in the constructor",
        _INIT,
        _INIT + "        raise KeyError('rank')\n",
        "shape",
        "`raise KeyError('rank')`",
    ),
    _m("no super", _INIT, "", "shape", "call super().__init__(config, dims) first"),
    _m(
        "super after the layers",
        _INIT + f"        self.value = {_LINEAR}\n",
        f"        self.value = {_LINEAR}\n" + _INIT,
        "shape",
        "call super().__init__(config, dims) first",
    ),
    _m(
        "super without arguments",
        "super().__init__(config, dims)",
        "super().__init__()",
        "shape",
        "super().__init__(config, dims)",
    ),
    _m(
        "no forward",
        "    def forward(self, x: Tensor, mask: Tensor | None = None)",
        "    def forwards(self, x: Tensor, mask: Tensor | None = None)",
        "shape",
        "define forward(self, x, mask=None)",
    ),
    _m(
        "option without a default",
        _OPTION,
        "    share: float\n",
        "shape",
        "give each option a default: option(DEFAULT, 'help')",
    ),
    _m("option without help", _OPTION, "    share: float = 0.5\n", "config", "option(DEFAULT, 'help')"),
    # It does not run.
    _m(
        "dtype written out",
        _VALUE,
        _VALUE + "        value = value @ torch.eye(x.shape[2], dtype=torch.float32)\n",
        "shape",
        "x.new_zeros(...) or dtype=x.dtype",
    ),
    _m(
        "default dtype",
        _VALUE,
        _VALUE + "        value = value @ torch.eye(x.shape[2])\n",
        "shape",
        "x.new_zeros(...) or dtype=x.dtype",
    ),
    _m(
        "device written out",
        _VALUE,
        _VALUE + "        value = value + torch.ones(1, device='cuda:77')\n",
        "shape",
        "x.new_zeros(...) or device=x.device",
    ),
    _m(
        "mask of None not thought of",
        "masked_mean(value, mask)",
        "(value * mask[:, :, None]).sum(1)",
        "mask_none",
        "the mask may be None",
    ),
    _m(
        "mask subtracted from one",
        "masked_mean(value, mask)",
        "(value * (1 - mask)[:, :, None]).sum(1) if mask is not None else value.sum(1)",
        "scattered_padding",
        "use ~mask",
    ),
    _m(
        "mask in the wrong shape",
        "masked_mean(value, mask)",
        "(value if mask is None else value * mask).sum(1)",
        "scattered_padding",
        "the mask (batch, length)",
    ),
    _m(
        "one length only",
        "self.value(x)",
        "self.value(x) + torch.zeros(self.dims.max_length, 1).to(x)",
        "shape",
        "any length up to dims.max_length",
    ),
    _m(
        "view of a transposed tensor",
        "self.value(x)",
        "self.value(x).transpose(1, 2).view(x.shape)",
        "shape",
        "use reshape instead of view",
    ),
    _m("numpy", "self.value(x)", "torch.from_numpy(self.value(x).numpy())", "gradients", "compute with torch only"),
    _m(
        "own assertion",
        _VALUE,
        _VALUE + "        assert x.shape[0] == 1, 'one at a time'\n",
        "shape",
        "`assert x.shape[0] == 1",
    ),
    # It runs and is wrong.
    _m(
        "input changed in place",
        _VALUE,
        "        x += 1\n" + _VALUE,
        "padding_gradient",
        "do not change x or the mask in place",
    ),
    _m(
        "masked input in place",
        _VALUE,
        "        if mask is not None:\n            x[~mask] = 0\n" + _VALUE,
        "empty_rows",
        "do not change x or the mask in place",
    ),
    _m(
        "mask changed in place",
        _VALUE,
        "        if mask is not None:\n            mask[:, 0] = True\n" + _VALUE,
        "shape",
        "in place",
    ),
    _m("tuple returned", _RETURN, "return zero_masked(value, mask), None", "shape", "not tuple"),
    _m("nothing returned", _RETURN, "value = zero_masked(value, mask)", "shape", "not NoneType"),
    _m("wrong shape", _RETURN, "return zero_masked(value, mask).transpose(1, 2)", "shape", "shaped like x"),
    _m("mean over the length returned", _RETURN, "return masked_mean(value, mask)", "shape", "shaped like x"),
    _m(
        "mask inverted",
        "masked_mean(value, mask)",
        "masked_mean(value, None if mask is None else ~mask)",
        "scattered_padding",
        "True in the mask",
    ),
    _m(
        "mask ignored",
        "masked_mean(value, mask)",
        "value.mean(1)",
        "suffix_padding",
        "True is a real token",
    ),
    _m("output not masked", _RETURN, "return value", "empty_rows", "attention_zoo.masking.zero_masked"),
    _m(
        "random without a generator",
        "self.value(x)",
        "self.value(x) + torch.rand_like(x)",
        "determinism",
        "draw random features in __init__, as buffers",
    ),
    _m("dropout always", "self.dims.dropout, self.training", "0.5, True", "determinism", "self.dropped"),
    _m("dropout never", "self.dims.dropout, self.training", "0.0, self.training", "determinism", "self.dropped"),
    _m(
        "state in attributes",
        "self.value(x)",
        "self.value(x) * self.__dict__.setdefault('scale', 1.0 + x.detach().mean())",
        "determinism",
        "evaluation depends on earlier calls",
    ),
    _m(
        "random tensor that is no buffer",
        "self.value(x)",
        "self.value(x) + self.__dict__.setdefault('noise', torch.randn(x.shape[2])).to(x)",
        "state_dict",
        "self.register_buffer(NAME, TENSOR)",
    ),
    _m(
        "mean over the batch",
        "self.value(x)",
        "self.value(x) - self.value(x).mean(0, keepdim=True)",
        "batch_independence",
        "mix along the length only",
    ),
    _m("causal claimed", 'complexity="O(n)"', 'complexity="O(n)", causal=True', "causal", "honour dims.causal"),
    _m(
        "order claimed not to matter",
        "self.value(x)",
        "self.value(x).cumsum(1)",
        "permutation",
        "permutation_equivariant",
    ),
    _m(
        "parameter unused",
        _LINEAR,
        "nn.Linear(dims.dim, dims.dim)\n        self.spare = nn.Linear(2, 2)",
        "gradients",
        "every parameter must take part in forward",
    ),
    _m("output detached", _RETURN, "return zero_masked(value, mask).detach()", "gradients", "do not detach"),
    _m(
        "waiver that is misspelt",
        'complexity="O(n)"',
        'complexity="O(n)", waivers={"memmory": "I know"}',
        "waivers",
        "memmory",
    ),
    _m("endless recursion", _VALUE, "        value = self.forward(x, mask)\n", "shape", "something calls itself"),
]
