# SPDX-License-Identifier: Apache-2.0
"""Resolution: profile, variant and overrides become the configuration of one run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from attention_zoo import (
    OptionError,
    RegistrationError,
    UnknownVariantError,
    VariantConfig,
    get_variant,
)
from attention_zoo.base import same_value
from attention_zoo.trial import TRIAL_PIXELS
from lra.config.builtin import profile_names
from lra.config.profiles import Profile, TaskRecipe
from lra.config.schema import (
    VARIANT_POSITIONS,
    ModelConfig,
    PretrainConfig,
    RunConfig,
    StartConfig,
    Track,
    TrainConfig,
    VariantChoice,
    canonical_json,
    validate_section,
)
from lra.errors import UsageError
from lra.models.convnet import READS as CONVNET_READS
from lra.models.convnet import family_problems
from lra.models.downsamplers import UnknownDownsamplerError, downsampler_origin
from lra.models.foreign import given_sizes
from lra.models.transformer import layer_dims
from lra.names import suggest
from lra.tasks import get_task, info_of
from lra.tasks.base import TaskInfo

_HIDING = ("pretrain.mask_rate", "pretrain.mask_span")
"""Settings of what denoising hides."""
WHOLE_MODEL_READS = ("family", "max_length", "dim")
"""Settings of the section `model` that count for a whole model of somebody else."""
OPEN_TRACK = "--track open admits it (in a suite: `track: open`)"


def check_variant_names(overrides: Mapping[str, Any], variants: Sequence[str]) -> None:
    """Check that each override of `variants.NAME` is meant for one of several variants.

    Raises:
        UsageError: It is not: without this, a mistyped name would change nothing and say nothing. Or an override of
            `variant` names an option that only some of the variants have.
    """
    for path in overrides:
        head, _, rest = path.partition(".")
        name, dot, _ = rest.partition(".")
        if head == "variants" and dot and not any(rest.startswith(f"{variant}.") for variant in variants):
            raise UsageError(f"{path}: {name!r} is not among the variants; {suggest(name, variants)}")
        if head != "variant":
            continue
        known = {variant: names for variant in variants if (names := _option_names(variant)) is not None}
        without = [variant for variant, names in known.items() if name not in names]
        having = [variant for variant in known if variant not in without]
        if without and having:
            whose = f"no option of {', '.join(without)}"
            if len(having) < len(without):
                whose = f"an option of {', '.join(having)} only"
            raise UsageError(f"{path}: {whose}; for one of several variants write variants.{having[0]}.{rest}")


def is_whole_model(variant: str) -> bool:
    """Say whether a name leads to what builds a whole model; if it leads to nothing, `resolve` tells."""
    try:
        return get_variant(variant).whole_model
    except (UnknownVariantError, RegistrationError):
        return False


def _option_names(variant: str) -> list[str] | None:
    """List the options of a variant; None if there is no such variant, of which `resolve` tells."""
    try:
        return [name for name, *_ in get_variant(variant).config.describe()]
    except (UnknownVariantError, RegistrationError):
        return None


def resolve(
    *,
    task: str,
    variant: str,
    profile: Profile,
    seed: int,
    track: Track = "matched",
    overrides: Mapping[str, Any],
    start: StartConfig | None = None,
    length: int | None = None,
) -> RunConfig:
    """Combine profile, variant and overrides into the configuration of one run.

    Args:
        task: Name of a task.
        variant: Name of a registered variant.
        profile: The recipe.
        seed: Seed of initialisation, data order and dropout.
        track: `matched` admits overrides of the variant's own options only; `open` admits all.
        overrides: Values by path: `data.x`, `model.x`, `train.x`; `variant.x` for the variant at hand, or
            `variants.NAME.x` for one of several; `x.y` for one entry of an option that is a mapping.
        start: The run whose weights it starts from.
        length: Of what the model reads, in place of the length of the data: for a step that is measured without data.

    Raises:
        UsageError: All mistakes at once, one per line.
    """
    problems: list[str] = []
    the_task, whole_model = get_task(task), is_whole_model(variant)
    recipe = profile.recipe(task, "foreign" if whole_model else str(overrides.get("model.family", "")))
    sections = {"data": dict(recipe.data), "model": dict(recipe.model), "train": dict(recipe.train)}
    sections["pretrain"] = dict(recipe.pretrain)
    if whole_model:
        sections["model"]["family"] = "foreign"
    options = profile.options(variant, task)
    origins: dict[str, str] = {}
    changed: dict[str, str] = {}
    for path, value in overrides.items():
        head, _, rest = path.partition(".")
        if whole_model and head == "model" and rest in ModelConfig.model_fields and rest not in WHOLE_MODEL_READS:
            continue  # of the variants beside it
        if head in sections and rest:
            sections[head][rest] = value
            if track == "matched" and not profile.admits(path, value):
                problems.append(f"{path}: fixed by the profile on the matched track; {OPEN_TRACK}")
        elif (head == "variant" and rest and rest.count(".") <= 1) or (
            head == "variants" and rest.startswith(f"{variant}.") and rest.count(".") <= variant.count(".") + 2
        ):
            key = rest if head == "variant" else rest.removeprefix(f"{variant}.")
            if changed.setdefault(key, path) != path:
                problems.append(f"{path}: {changed[key]} is given, too; leave one out")
        elif head == "variants" and "." in rest and not rest.startswith(f"{variant}."):
            pass  # of another variant
        else:
            problems.append(
                f"{path}: unknown key; paths begin with data., model., train., pretrain., variant. or variants.NAME."
            )
    for key in sorted(changed, key=lambda key: "." in key):  # an entry adds to the whole
        _set_option(variant, options, key, overrides[changed[key]], origins, changed[key])
    if sections["train"].get("compile") is True:
        sections["train"].setdefault("padding", "coarse")
    data, data_problems = validate_section(the_task.options, sections["data"], "data")
    if data is not None and "max_length" not in sections["model"]:
        sections["model"]["max_length"] = the_task.max_length(data)
    model, model_problems = validate_section(ModelConfig, sections["model"], "model")
    train, train_problems = validate_section(TrainConfig, sections["train"], "train")
    denoises = train is not None and train.denoise > 0.0
    pretrain, pretrain_problems = pretraining(the_task.info, sections["pretrain"], beside=denoises)
    if not pretrain_problems and (pretrain is None or not pretrain.share):
        used = {"pretrain.share", *((*_HIDING, "pretrain.loss") if denoises else ())}
        ours = [path for path in overrides if path.startswith("pretrain.") and path not in used]
        problems += [f"{path}: without effect, since pretrain.share is 0" for path in ours]
    if pretrain is not None and model is not None and model.causal:
        problems += [
            f"{path}: without effect, since a causal model hides nothing" for path in overrides if path in _HIDING
        ]
    if model is not None and model.positions in VARIANT_POSITIONS and not whole_model:
        name, value = VARIANT_POSITIONS[model.positions]
        if name not in options:
            _set_option(variant, options, name, value, origins, f"model.positions={model.positions}")
    if "pool_origin" in sections["model"]:
        problems.append("model.pool_origin: filled in from the layer that model.pool names, never set")
    if model is not None and model.family == "convnet":
        problems += [
            f"{path}: a convnet does not read it"
            for path in overrides
            if path.startswith("model.") and path.removeprefix("model.") not in CONVNET_READS
        ]
    problems += data_problems + model_problems + train_problems + pretrain_problems
    config = _variant_config(variant, options, origins, problems)
    if data is None or model is None or train is None or config is None or pretrain_problems:
        raise UsageError("\n".join(problems))
    run = RunConfig(
        task=task,
        profile=profile.name,
        track=track,
        data=data.model_dump(),
        variant=VariantChoice(name=variant, options=config.to_dict()),
        model=model,
        train=train,
        pretrain=pretrain,
        start=start,
        seed=seed,
    )
    if problems := problems + run_problems(run):
        raise UsageError("\n".join(problems))
    if length is not None:  # before options get their one form, since defaults of some depend on it
        run = run.model_copy(update={"model": model.model_copy(update={"max_length": length})})
    return with_programs(in_one_form(run, *spelt_out(run, profile)))


def run_problems(config: RunConfig) -> list[str]:
    """List why a configuration, however it was written, is that of no run, one line each.

    Its sections and the options of its variant are valid, each on its own.
    """
    problems, task, variant = [], get_task(config.task), config.variant
    model, train = config.model, config.train
    data = task.options.model_validate(config.data)
    if config.start is not None and config.track == "matched":
        problems.append(f"--from: the steps of another run come on top of the profile's; {OPEN_TRACK}")
    whole_model = is_whole_model(variant.name)
    if whole_model and config.track == "matched":
        problems.append(f"{variant.name} builds a whole model, which no profile has; {OPEN_TRACK}")
    if config.start is not None and model.family != "transformer":
        problems.append(f"--from: a model of family {model.family!r} starts from no other run")
    if train.augment and task.augmentation(data) is None:
        problems.append(f"train.augment: nothing is known that changes examples of {config.task} and no label")
    if train.crop is not None and not task.info_for(data).crops:
        problems.append(
            f"train.crop: a part of an example of {config.task} does not have its label; text and retrieval crop"
        )
    if task.max_length(data) > model.max_length:
        problems.append(f"model.max_length: {model.max_length} is shorter than the data ({task.max_length(data)})")
    if not model.head_dim and model.dim % model.num_heads:
        problems.append(f"model.num_heads: dim {model.dim} is not a multiple of {model.num_heads}; give head_dim")
    problems += family_problems(model, task.info_for(data), variant, whole_model=whole_model)
    problems += _pretraining_problems(config, task.info)
    problems += _causal_problems(model, variant.name) if model.causal else []
    if model.norm == "batch" and train.accumulation > 1:
        problems.append("model.norm: batch norm needs its batch whole, so train.accumulation has to be 1")
    if config.track == "open":
        problems += positions_problems(model, variant.options)
    return problems


def pretraining(info: TaskInfo, values: Mapping[str, Any], *, beside: bool) -> tuple[PretrainConfig | None, list[str]]:
    """Complete the section `pretrain` for a task.

    Args:
        info: The task.
        values: What is given.
        beside: Whether the task is learnt beside denoising, which then needs the section, too.

    Returns:
        The section, None if nothing is denoised; and one line per mistake.
    """
    given = {"mask_rate": info.mask_rate, "loss": info.denoising_loss} | dict(values)
    section, problems = validate_section(PretrainConfig, given, "pretrain")
    if section is None:
        return None, problems
    if not section.share and not beside:
        return None, []
    if section.loss == "l1" and info.normalisation is None:
        return None, [
            f"pretrain.loss: l1 is a distance of values, and task {info.name!r} has ids; cross_entropy is for it"
        ]
    return section, []


def _pretraining_problems(config: RunConfig, info: TaskInfo) -> list[str]:
    """List why a run cannot denoise, one line each."""
    pretrain, beside = config.pretrain, config.train.denoise > 0.0
    if pretrain is None:
        return ["train.denoise: the section `pretrain` says how, and is missing"] if beside else []
    section, problems = pretraining(info, pretrain.model_dump(), beside=beside)
    if section is None and not problems:
        problems.append("pretrain: without effect, since pretrain.share and train.denoise are 0; leave it out")
    if config.model.family != "transformer":
        where = "pretrain.share" if pretrain.share else "train.denoise"
        problems.append(
            f"{where}: a model of family {config.model.family!r} gives nothing for single places to denoise"
        )
    if pretrain.share and config.train.steps < 2:
        problems.append("pretrain.share: a run of one step has none for pretraining; train.steps has to be 2 or more")
    if pretrain.share and config.data.get("validation") == "test":
        problems.append(
            "pretrain.share: the validation split of this dataset is its test split, whose inputs pretraining may not "
            "see; --track open --set data.validation=held_out holds out a part of the training split"
        )
    return problems


def positions_problems(model: ModelConfig, options: Mapping[str, Any]) -> list[str]:
    """List why positions that are options of the variant do not have the one name that they have in `model.positions`.

    Under two names, one computation would be two runs.
    """
    biases = [value for name, value in VARIANT_POSITIONS.values() if name == "bias"]
    bias = options["bias"] if options.get("bias") in biases else ""
    name = "rotary" if options.get("rotary") is True else bias or "none"
    if model.family != "transformer" or model.positions not in ("none", *VARIANT_POSITIONS) or model.positions == name:
        return []
    more = f" --set variant.bias={bias}" if bias and name == "rotary" else ""
    return [
        f"model.positions: with these options of the variant, they are {name}; for one id of such runs, write "
        f"--set model.positions={name}{more}"
    ]


def _causal_problems(model: ModelConfig, variant: str) -> list[str]:
    """List why a model cannot be causal, one line each."""
    try:
        has_form = get_variant(variant).traits.causal
    except (UnknownVariantError, RegistrationError):
        return []  # told elsewhere
    problems = [] if has_form else [f"model.causal: {variant} has no causal form"]
    if model.pooling in ("cls", "first"):
        problems.append(
            f"model.causal: with model.pooling={model.pooling}, the first place is read, which sees no other"
        )
    if model.norm == "batch":
        problems.append("model.causal: the statistics of model.norm=batch are of later tokens too")
    return problems


def spelt_out(config: RunConfig, profile: Profile | None) -> tuple[TaskRecipe, Mapping[str, Any]]:
    """Return what `in_one_form` keeps of a run: what a built-in profile says, and nothing of other profiles.

    The ids of records have the spelling of their built-in profile. A profile of somebody's own may be spelt in several
    ways, and a configuration in a file does not say in which.
    """
    if profile is None or profile.name not in profile_names():
        return TaskRecipe(model={}, train={}), {}
    return profile.recipe(config.task, config.model.family), profile.options(config.variant.name, config.task)


def in_one_form(config: RunConfig, recipe: TaskRecipe, options: Mapping[str, Any]) -> RunConfig:
    """Return a configuration that spells out of what it would have anyway only what its recipe does.

    So equal runs have one id.

    Args:
        config: The configuration.
        recipe: What its profile says of its task.
        options: What its profile says of its variant.
    """
    task, model, train, pretrain = get_task(config.task), config.model, config.train, config.pretrain
    data = task.options.model_validate(config.data)
    reads = {"convnet": CONVNET_READS, "foreign": WHOLE_MODEL_READS}.get(model.family, tuple(ModelConfig.model_fields))
    usual_model = {name: field.default for name, field in ModelConfig.model_fields.items() if not field.is_required()}
    usual_model |= recipe.model  # sizes without a default stay as they are if no recipe says them
    same: dict[str, Any] = {name: value for name, value in usual_model.items() if name not in reads}
    if "head_dim" not in reads or model.head_dim * model.num_heads == model.dim:
        same["head_dim"] = 0
    if model.embedding_rows == task.info_for(data).vocab_size:
        same["embedding_rows"] = None
    sections: dict[str, Any] = {"model": model.model_copy(update=same)}
    same = {"state_space_lr": None} if train.state_space_lr == train.lr else {}
    if train.crop is not None and train.crop >= task.max_length(data):
        same["crop"] = None
    sections["train"] = train.model_copy(update=same)
    if pretrain is not None:
        usual = {"mask_rate": task.info.mask_rate, "mask_span": 1, "lr_scale": 1.0, "warmup": None} | recipe.pretrain
        idle = (("mask_rate", "mask_span") if model.causal else ()) + (() if pretrain.share else ("lr_scale", "warmup"))
        same = {name: usual[name] for name in idle}
        if pretrain.share and pretrain.warmup in (None, train.warmup_steps):
            same["warmup"] = None if usual["warmup"] is None else train.warmup_steps
        sections["pretrain"] = pretrain.model_copy(update=same)
    empty = {name: type(data).model_fields[name].default for name in task.defaults(data)}
    sections["data"] = config.data | {
        name: empty[name] if same_value(recipe.data.get(name, empty[name]), empty[name]) else value
        for name, value in task.defaults(data).items()
        if any(same_value(getattr(data, name), usual) for usual in (value, empty[name]))
    }
    config = config.model_copy(update=sections)
    if model.family == "transformer":
        choice = config.variant
        typed = choice.typed.in_one_form(layer_dims(config, 0), options)
        if not same_value(typed.to_dict(), choice.typed.to_dict()):
            # Made anew, since a copy would keep the options that are typed already.
            choice = VariantChoice(name=choice.name, options=typed.to_dict(), origin=choice.origin)
            config = config.model_copy(update={"variant": choice})
    return config


def with_programs(config: RunConfig) -> RunConfig:
    """Return a configuration that names the programs of third parties that it runs, and has its options typed.

    Raises:
        UsageError: The source of a program cannot be found, or an option is wrong.
    """
    try:
        choice = VariantChoice.of(config.variant.name, config.variant.typed, _trial_sizes(config))
        origin = downsampler_origin(config.model.pool, config.model.dim, info_of(config).grid)
    except (UnknownVariantError, RegistrationError, OptionError, UnknownDownsamplerError) as error:
        raise UsageError(f"variant: {error.args[0]}") from error
    model, task = config.model.model_copy(update={"pool_origin": origin}), get_task(config.task)
    program = task.origin(task.options.model_validate(config.data))
    return config.model_copy(update={"variant": choice, "model": model, "task_origin": program})


def _trial_sizes(config: RunConfig) -> dict[str, Any]:
    """Return the sizes of a run with which a program of a third party is tried; empty for a convnet, which has none."""
    if config.model.family == "transformer":
        with contextlib.suppress(ValueError):  # sizes that do not fit: `run_problems` tells
            return asdict(layer_dims(config, config.model.num_layers - 1)) | {"precision": config.train.precision}
    if config.model.family == "foreign":
        info = info_of(config)
        sizes: dict[str, Any] = given_sizes(config, info, info.vocab_size, info.num_classes)
        if info.grid is not None or config.train.padding == "fixed":
            sizes["trial_length"] = min(config.model.max_length, TRIAL_PIXELS)
        return sizes | {"precision": config.train.precision}
    return {}


def _set_option(
    variant: str, options: dict[str, Any], key: str, value: Any, origins: dict[str, str], path: str
) -> None:
    """Set an option, or with `key` = `name.entry` one entry of an option that is a mapping; note where it is from."""
    name, dot, entry = key.partition(".")
    if dot:
        present = options.get(name, _default_options(variant).get(name))
        value = {**(present if isinstance(present, Mapping) else {}), entry: value}
    options[name] = value
    origins[name] = path


def _default_options(variant: str) -> dict[str, Any]:
    """Return the options of a variant as its class has them; none of one that cannot be used, which is told later."""
    with contextlib.suppress(UnknownVariantError, RegistrationError):
        return {name: default for name, _, default, _ in get_variant(variant).config.describe()}
    return {}


def _variant_config(
    variant: str, options: Mapping[str, Any], origins: Mapping[str, str], problems: list[str]
) -> VariantConfig | None:
    """Build the options of a variant; on mistakes return None and add one line per mistake, under the path it is from.

    A problem that `origins` has no path for, as that of a profile's option, is under `variant.`.
    """
    try:
        section = get_variant(variant).config
    except (UnknownVariantError, RegistrationError) as error:
        problems.append(str(error.args[0]))
        return None
    known = [name for name, *_ in section.describe()]
    unknown = [name for name in options if name not in known]
    problems += [
        f"{origins.get(name, f'variant.{name}')}: no option of {variant}; {suggest(name, known)}"
        for name in unknown
        if not origins.get(name, "").startswith("model.positions")
    ]
    problems += [
        f"{origins[name]}: {variant} cannot have these positions, since it has no option {name}; "
        "every variant has none, sinusoidal and learned ones"
        for name in unknown
        if origins.get(name, "").startswith("model.positions")
    ]
    try:
        config = section.from_dict({name: value for name, value in options.items() if name in known})
        config = section.from_dict(json.loads(canonical_json(config.to_dict())))  # as a record has it
    except OptionError as error:
        for line in str(error).splitlines():
            name, colon, problem = line.partition(": ")
            problems.append(f"{origins.get(name, f'variant.{name}')}{colon}{problem}")
        return None
    except (TypeError, ValueError) as error:
        problems.append(f"an option of {variant} has a value that no record can hold: {error}")
        return None
    return None if unknown else config
