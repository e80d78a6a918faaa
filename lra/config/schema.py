# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: strict, frozen, complete, and hashed into the run id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lra.errors import UsageError
from lra.names import suggest
from lra.schedules import ScheduleName

if TYPE_CHECKING:
    from attention_zoo import VariantConfig

S = TypeVar("S", bound=BaseModel)
Track = Literal["matched", "open"]
Precision = Literal["float32", "bfloat16"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _as_hashed(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with values as they are hashed: keys of mappings are texts, in order, and all types are plain."""
    return {name: json.loads(canonical_json(value)) for name, value in options.items()}


Options = Annotated[dict[str, Any], AfterValidator(_as_hashed)]
"""Options by name. What is built from them is built from what is hashed."""
Undecayed = Literal["biases", "embeddings", "norms", "state_space"]

VARIANT_POSITIONS: dict[str, tuple[str, Any]] = {
    "rotary": ("rotary", True),
    "alibi": ("bias", "alibi"),
    "t5": ("bias", "t5"),
}
"""Values of `model.positions` that are an option of the variant, with its name and value."""

NUMERICS_VERSION = 2
"""Raised with every change of the code that changes numbers; part of each run id."""

CHANGED_IN_2 = frozenset({"block_topk", "gated_linear", "h_transformer_1d", "lion", "reformer", "sparse"})
"""Variants of which numerics version 2 changed the order of sums. All others it changed in their dropout only."""

ADDED_LATER: dict[str, Any] = {
    "task_origin": "",
    "pretrain": None,
    "start": None,
    "model.causal": False,
    "model.norm": "layer",
    "model.norm_placement": "pre",
    "model.pool_origin": "",
    "train.augment": False,
    "train.crop": None,
    "train.denoise": 0.0,
    "train.undecayed": [],
    "train.state_space_lr": None,
    "data.image.gray_levels": "nearest",
    "data.image.source": "archive",
    "data.image.side": 32,
    "data.image_continuous.side": 32,
    "data.retrieval.pairs": "given",
    "data.text.source": "archive",
    "data.pathfinder.touching": "refused",
    "data.pathfinder_continuous.touching": "refused",
    "data.pathfinder64.touching": "refused",
    "data.pathx.touching": "refused",
    "data.pathx256.touching": "refused",
    **{
        f"data.{task}.{option}": as_before
        for task in ("pathfinder", "pathfinder_continuous", "pathfinder64", "pathx", "pathx256")
        for option, as_before in {
            "side": None,
            "contour_length": None,
            "distractors": None,
            "balanced_discs": False,
        }.items()
    },
    "variant.adaptive_span.bias": "none",
    "variant.adaptive_span.span_rate": 10.0,
    "variant.bigbird.bias": "none",
    "variant.contextpool.bias": "none",
    "variant.contextpool_conv_only.bias": "none",
    "variant.differential.bias": "none",
    "variant.full.bias": "none",
    "variant.local.bias": "none",
    "variant.longformer.bias": "none",
    "variant.sparse.bias": "none",
    "variant.local.layout": "blocks",
    "variant.local.look_around": 0,
    "variant.mega.form": "paper",
    "variant.performer.stabiliser": 0.0,
    "variant.performer.temperature": 1.0,
    "variant.reformer.scores": "scaled",
    "variant.s4d.initialisation": "lin",
    "variant.sinkhorn.first": "columns",
    "variant.synthesizer.dot_product": False,
    "variant.transformer_ls.summaries": "keys",
}
"""Settings that came after the first records, each with the value that means "as before".

A setting that has this value is left out of what is hashed, so runs from before it keep their ids. The value is also
the default of its field, since older records are read without it. Paths: `seed`, `model.dim`, `train.lr`, and with the
name of the task or variant `data.listops.max_depth`, `variant.linformer.rank`.
"""


class Section(BaseModel):
    """A part of a configuration: exact types, no unknown keys, no changes after it is built."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        return plain(values)


class ModelConfig(Section):
    """The model around the mixer."""

    family: Literal["transformer", "convnet", "foreign"] = "transformer"
    """`convnet` is a small residual network for pixels, without a mixer: see `lra.models.convnet`. `foreign` is a whole
    model that the variant names, see `lra.models.foreign`; it is filled in, never set."""
    pool: str = "max"
    """How a convnet makes its feature maps smaller: `max`, `average`, `stride`, or a plug-in such as `contextpool`."""
    pool_origin: str = ""
    """Program of a third party's `pool`, like the origin of a variant; filled in, never set. Empty for our own ones."""
    dim: Count
    """Width of the stream, in features."""
    num_layers: Count
    num_heads: Count
    head_dim: Annotated[int, Field(ge=0)] = 0
    """Width of a head; 0 takes dim / num_heads."""
    mlp_dim: Count
    max_length: Count
    """Longest sequence; also the rows of a learned position table and the padded length of `padding: fixed`."""
    dropout: Share = 0.1
    attention_dropout: Share = 0.1
    positions: Literal["none", "sinusoidal", "learned", "rotary", "alibi", "t5"] = "sinusoidal"
    """`sinusoidal` and `learned` are added to the embedding. The last three are the variant's: they set its option
    `rotary` or `bias`, and a variant without it is refused."""
    pooling: Literal["cls", "first", "last", "masked_mean", "padded_mean", "max", "attention"] = "masked_mean"
    """`cls` reads a learnt token put in front, `first` the first token of the text, `last` its last real one;
    `padded_mean` divides the sum over real tokens by `max_length`; `max` takes the largest value of each feature;
    `attention` averages with learnt weights, a softmax of one score for each token."""
    causal: bool = False
    """Whether no token sees a later one; a variant without a causal form is refused."""
    pair_head: Literal["paper", "code"] = "paper"
    """For tasks on pairs: `paper` classifies [x1, x2, x1 * x2, x1 - x2] with one hidden layer, `code` classifies
    [x1, x2] with two, the second half as wide."""
    qkv_bias: bool = True
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    embedding_rows: Count | None = None
    """Rows of the token table; None: the size of the task's vocabulary."""
    embedding_std: Annotated[float, Field(gt=0.0)] = 0.02
    norm: Literal["layer", "batch", "rms"] = "layer"
    """`batch` takes its statistics from the real tokens of a batch in training, and running averages in evaluation."""
    norm_placement: Literal["pre", "post"] = "pre"
    """`pre` normalises what a branch reads, and the stream before pooling; `post` the stream after each branch."""
    norm_eps: Annotated[float, Field(gt=0.0)] = 1e-5
    head_hidden: Annotated[int, Field(ge=0)] = 0
    """Width of the classifier's hidden layer; 0 leaves a single linear map."""


class TrainConfig(Section):
    """The optimiser, its schedule, the batches and which weights are scored."""

    batch_size: Count
    steps: Count
    lr: Annotated[float, Field(gt=0.0)]
    schedule: ScheduleName = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    undecayed: Annotated[list[Undecayed], AfterValidator(lambda kinds: sorted(set(kinds)))] = []
    """Kinds of parameters without weight decay; `biases` are those of linear maps and convolutions, `state_space` what
    a variant's `parameter_groups` names so."""
    state_space_lr: Annotated[float, Field(gt=0.0)] | None = None
    """Learning rate of the parameters of kind `state_space`; None: `lr`. It follows the same schedule."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    eval_every: Count
    selection: Literal["best", "last"] = "best"
    """Which weights are tested: best on validation (the earliest of equals), or those of the last step."""
    padding: Literal["bucketed", "coarse", "fixed"] = "bucketed"
    """`bucketed` puts examples of similar length together and pads to the longest of the batch; in training, `coarse`
    rounds that up to one of at most 16 lengths, for compiled code."""
    accumulation: Count = 1
    """Parts that a batch is cut into, one after the other, to save memory."""
    augment: bool = False
    """Whether training examples are changed each time that they are read, without another label: arguments of ListOps
    are shuffled, images flipped."""
    crop: Count | None = None
    """Longest part of a document that training reads, a random one each time; None: all. For Text and Retrieval."""
    denoise: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of a denoising loss in each step of the task: see `lra.models.denoiser`."""
    precision: Precision = "float32"
    """`bfloat16` runs the forward pass under autocast; weights and optimiser stay float32."""
    compile: bool = False
    """Whether the steps of training go through torch.compile. Its code adds and draws in another order, so the numbers
    are others. With it, `bucketed` becomes `coarse` unless `padding` is set."""


class PretrainConfig(Section):
    """Denoising of the training inputs, in a phase before the task or beside it: see `lra.models.denoiser`.

    The phase has its own optimiser, and the schedule of `train` over its own steps. The task then begins with the
    weights that have the least loss on held-out inputs. Beside the task, `train.denoise` is the weight of the loss.
    """

    share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of `train.steps` that the phase takes from the task."""
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Probability that a place is hidden; from the task, if it is not set. A causal model hides none."""
    mask_span: Count = 1
    """Length of the spans that are hidden; 1 hides each place on its own."""
    loss: Literal["cross_entropy", "l1"]
    """Of ids, `cross_entropy`. Of values, `cross_entropy` over 256 levels, or `l1`, the distance of the normalised
    values; from the task, if it is not set."""
    lr_scale: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor of `train.lr` in this phase."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    """Steps of warm-up of this phase; None: `train.warmup_steps`."""


class StartConfig(Section):
    """The run whose chosen weights a run starts from, all but those of the classifier's own layers."""

    run: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Its id."""
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the weights."""
    steps: Count
    """Steps behind these weights: of the run, and of those that it started from."""


class VariantChoice(Section):
    """A variant and all its options, defaults included."""

    name: str
    options: Options
    origin: str = ""
    """Program of a third party's variant: distribution, version and digest of the source. Empty for our own variants.
    """

    @classmethod
    def of(cls, name: str, typed: VariantConfig, sizes: Mapping[str, Any] | None = None) -> VariantChoice:
        """Return the choice of a variant with these options.

        Args:
            name: Of the variant.
            typed: Its options.
            sizes: Those of the run, with which a program of a third party is tried.

        Raises:
            RegistrationError: The source of a third party's variant cannot be found.
        """
        from attention_zoo.registry import normalise, program_origin  # here: torch, which --help does without

        inner = {spelt: normalise(spelt) for spelt in typed.inner_variants()}
        options = map_texts(typed.to_dict(), lambda text: inner.get(text, text))
        return cls(name=name, options=options, origin=program_origin(name, typed, sizes))

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out `typed`, whose class another process may have to make anew."""
        state = super().__getstate__()
        return state | {"__dict__": {name: self.__dict__[name] for name in type(self).model_fields}}

    @cached_property
    def typed(self) -> VariantConfig:
        """The options as an instance of the variant's own class, made from what is hashed, so that a run is its id's.

        Raises:
            OptionError: The variant refuses an option.
        """
        from attention_zoo import get_variant

        return get_variant(self.name).config.from_dict(self.options)


class RunConfig(Section):
    """Everything that can change the number of one run."""

    task: str
    task_origin: str = ""
    """Program of a third party's task, like the origin of a variant; filled in, never set. Empty for our own tasks."""
    profile: str
    track: Track
    data: Options
    """The task's own options, defaults included."""
    variant: VariantChoice
    model: ModelConfig
    train: TrainConfig
    pretrain: PretrainConfig | None = None
    """None if nothing is denoised."""
    start: StartConfig | None = None
    """None if the weights are drawn."""
    seed: Annotated[int, Field(ge=0)]

    @property
    def budget(self) -> int:
        """Steps behind the result, those of the runs that it started from included."""
        return self.train.steps + (0 if self.start is None else self.start.steps)

    @property
    def pretrain_steps(self) -> int:
        """Steps of pretraining: a share of all, at least one, and at most all but one; 0 without."""
        if self.pretrain is None or not self.pretrain.share:
            return 0
        return min(max(1, round(self.pretrain.share * self.train.steps)), self.train.steps - 1)

    @property
    def mixes(self) -> bool:
        """Whether the model has a place for a mixer; a convnet has none, and so no form with full attention."""
        return self.model.family != "convnet"

    @property
    def padded_length(self) -> int | None:
        """Length to which every batch is padded, in evaluation too; None for the longest of its examples."""
        return self.model.max_length if self.train.padding == "fixed" else None

    def hashed(self) -> dict[str, Any]:
        """Return all settings as plain values, without those that came later and are as before: see `ADDED_LATER`."""
        values = self.model_dump()
        # What is named by its file is identified by its content, wherever the file is.
        values["variant"]["name"] = without_folder(self.variant.name)
        programs = {program.partition(" source ")[0] for program in self.variant.origin.split("; ")}
        values["variant"]["options"] = map_texts(
            values["variant"]["options"], lambda text: name if (name := without_folder(text)) in programs else text
        )
        values["task"] = without_folder(self.task)
        sections = {"": values, "model": values["model"], "train": values["train"]}
        sections |= {f"data.{self.task}": values["data"], f"variant.{self.variant.name}": values["variant"]["options"]}
        for path, as_before in ADDED_LATER.items():
            section, _, name = path.rpartition(".")
            holder = sections.get(section, {})
            if name in holder and canonical_json(holder[name]) == canonical_json(as_before):
                del holder[name]
        return values

    def key(self) -> bytes:
        """Return a key that two configurations share if they are the same run on the same data."""
        return canonical_json(self.hashed())

    def numbers_until(self, numerics_version: int) -> int:
        """Return the newest numerics version under which this run has the same numbers as under this one."""
        bases = {str(holder["base"]) for holder in _wrappers(self.variant.options)}
        changed = self.variant.origin or not CHANGED_IN_2.isdisjoint({self.variant.name, *bases})
        if numerics_version == 1 and not (changed or self.model.dropout or self.model.attention_dropout):
            return 2
        return numerics_version

    def run_id(self, data_digest: str, numerics_version: int = NUMERICS_VERSION) -> str:
        """Return the id of the run: SHA-256 of this configuration, the data's content and the numerics version."""
        identity = {"config": self.hashed(), "data_digest": data_digest, "numerics_version": numerics_version}
        return hashlib.sha256(canonical_json(identity)).hexdigest()


def distinct(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Return the configurations, each run once: two paths may name one file."""
    found: dict[bytes, RunConfig] = {}
    for config in configs:
        found.setdefault(config.key(), config)
    return list(found.values())


def without_folder(name: str) -> str:
    """Return the name of a variant or task without the folder of the file that it may name."""
    place, _, inner = name.rpartition(":")
    if place == "hf":
        return f"hf:{inner.rpartition('/')[2]}"
    return name.rpartition("/")[2] if place.endswith(".py") else name


def _wrappers(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options that name a base variant: those of a wrapper, and of wrappers that are a base in it."""
    while isinstance(options, dict) and "base" in options:
        yield options
        options = options.get("base_options") or {}


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a plain value with every text in it changed, keys of mappings excepted."""
    if isinstance(value, Mapping):
        return {name: map_texts(inner, change) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Return plain values in the one form that is hashed: 0.0 for -0.0, and lists for tuples."""
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def canonical_json(value: Any) -> bytes:
    """Serialise to the one JSON form that is hashed: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: There is a NaN or an infinity, which JSON cannot represent.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def validate_section(section: type[S], values: Mapping[str, Any], path: str) -> tuple[S | None, list[str]]:
    """Build a section from plain values; on mistakes return None and one line per mistake."""
    try:
        return section.model_validate(dict(values)), []
    except ValidationError as error:
        return None, [_problem(detail, path, section) for detail in error.errors(include_url=False)]


def valid_section(section: type[S], values: Mapping[str, Any], path: str) -> S:
    """Build a section from plain values.

    Raises:
        UsageError: One line per mistake.
    """
    built, problems = validate_section(section, values, path)
    if built is None:
        raise UsageError("\n".join(problems))
    return built


def _problem(detail: Any, path: str, section: type[BaseModel]) -> str:
    where = ".".join([path, *map(str, detail["loc"])])
    if detail["type"] == "extra_forbidden":
        *parents, key = detail["loc"]
        return f"{where}: unknown key; {suggest(str(key), _section_at(section, parents).model_fields)}"
    if detail["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {detail['msg'][:1].lower()}{detail['msg'][1:]} (got {detail['input']!r})"


def _section_at(section: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Return the section that a path of keys leads to, through sections, lists and mappings of sections."""
    here: Any = section
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[str(step)].annotation
            if isinstance(here, UnionType):
                here = next(part for part in get_args(here) if part is not NoneType)
        else:
            here = get_args(here)[-1]  # of list[item] or dict[key, item]
    assert isinstance(here, type)
    assert issubclass(here, BaseModel)
    return here
