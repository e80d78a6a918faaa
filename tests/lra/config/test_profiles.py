"""Every task of every built-in profile resolves, and the sizes are the published ones."""

import copy
import functools
import json
import re

import pytest
import torch

from attention_zoo import available
from lra.config.builtin import config_folder, profile_names
from lra.config.profiles import load_profile
from lra.config.resolve import check_variant_names, resolve
from lra.config.yaml_loader import load_file
from lra.errors import UsageError
from lra.models.transformer import build_model, count_parameters
from lra.tasks import TASKS, get_task
from runners.train.plan import plan

CELLS = [(profile, task) for profile in profile_names() for task in load_profile(profile).tasks]
SIX = {"listops", "text", "retrieval", "image", "pathfinder", "pathx"}


def config(profile, task, track="matched", **overrides):
    return resolve(task=task, variant="full", profile=load_profile(profile), seed=0, track=track, overrides=overrides)


def parameters(profile, task):
    info = get_task(task).info
    with torch.device("meta"):
        return count_parameters(build_model(config(profile, task), info.vocab_size, info.num_classes))


def test_the_profiles_are_the_nine_and_that_of_the_probes():
    assert profile_names() == [
        "mini", "modern", "nystromformer", "official", "paper", "probes", "quick", "rotary", "s4", "spt",
    ]  # fmt: skip
    assert len(CELLS) >= 30


@pytest.mark.parametrize(("profile", "task"), CELLS)
def test_every_task_of_every_profile_resolves_and_builds(profile, task):
    assert config(profile, task).profile == profile
    assert parameters(profile, task) > 0


@pytest.mark.parametrize(
    ("profile", "tasks"),
    [
        ("official", SIX | {"pathfinder64", "pathx256"}),
        ("nystromformer", SIX - {"pathx"}),
        ("paper", SIX - {"pathx"}),
        ("modern", set(TASKS)),
        ("mini", SIX),
    ],
)
def test_each_profile_covers_what_its_source_defines(profile, tasks):
    assert tasks <= set(load_profile(profile).tasks)


@pytest.mark.parametrize(
    ("profile", "task", "expected"),
    [
        ("official", "listops", 8_948_746),
        ("official", "text", 3_486_722),
        ("official", "retrieval", 1_087_618),
        ("official", "image", 248_458),
        ("official", "pathfinder", 26_530),
        ("official", "pathfinder64", 153_186),
        ("official", "pathx", 537_954),
        ("official", "pathx256", 2_119_266),
        ("nystromformer", "listops", 209_802),
        ("nystromformer", "text", 370_562),
        ("nystromformer", "retrieval", 395_138),
        ("nystromformer", "image", 174_986),
        ("nystromformer", "pathfinder", 173_954),
    ],
)
def test_parameter_counts_are_the_published_ones(profile, task, expected):
    assert parameters(profile, task) == expected


@pytest.mark.parametrize(("profile", "legacy"), [("official", True), ("nystromformer", True), ("modern", False)])
def test_faithful_switches_are_in_the_record(profile, legacy):
    for task in ("image", "pathfinder"):
        assert config(profile, task).data["legacy_zero_mask"] is legacy
    assert config(profile, "text").data["validation"] == ("test" if legacy else "held_out")


def test_the_official_retrieval_never_leaves_its_warm_up_and_the_modern_one_trains_on():
    official, modern = config("official", "retrieval"), config("modern", "retrieval")
    assert official.train.warmup_steps > official.train.steps
    assert official.train.steps * official.train.batch_size < 1.1 * 147_086
    assert modern.train.warmup_steps < modern.train.steps / 10
    assert modern.train.steps * modern.train.batch_size > 10 * 147_086
    assert (official.model.pair_head, modern.model.pair_head) == ("code", "paper")


def test_quick_has_what_leaves_chance_in_minutes_and_says_who_has_the_rest():
    assert set(load_profile("quick").tasks) == {"listops", "text", "image", "image_continuous"}
    with pytest.raises(
        UsageError, match=r"'quick' does not define task 'pathfinder'; these do: mini, .*--profile mini"
    ):
        config("quick", "pathfinder")


def test_retrieval_of_mini_is_labelled_as_a_substitute():
    chosen = config("mini", "retrieval")
    task = get_task("retrieval")
    assert "substitute" in task.dataset_name(task.options.model_validate(chosen.data))


GIVEN = [(profile, variant) for profile in profile_names() for variant in load_profile(profile).variants]


@pytest.mark.parametrize(("profile", "variant"), GIVEN)
def test_the_options_a_profile_gives_to_variants_are_theirs(profile, variant):
    recipe = load_profile(profile)
    given = recipe.variants[variant]
    assert given
    chosen = resolve(task="text", variant=variant, profile=recipe, seed=0, overrides={}).variant.options
    assert {name: chosen[name] for name in given} == given
    misspelt = recipe.model_copy(update={"variants": {variant: {f"{name}_": value for name, value in given.items()}}})
    with pytest.raises(UsageError, match=f"no option of {variant}"):
        resolve(task="text", variant=variant, profile=misspelt, seed=0, overrides={})


def test_profiles_that_give_options_to_variants():
    assert len(GIVEN) >= 4


BY_TASK = {
    (profile, variant)
    for profile in profile_names()
    for recipe in load_profile(profile).tasks.values()
    for variant in recipe.variants
}


@pytest.mark.parametrize(("profile", "variant"), sorted({*GIVEN, *BY_TASK, ("official", "performer")}))
def test_a_variant_has_the_same_options_on_every_task_but_for_what_the_task_gives_it(profile, variant):
    recipe = load_profile(profile)
    chosen = {
        task: resolve(task=task, variant=variant, profile=recipe, seed=0, overrides={}).variant.options
        for task in recipe.tasks
    }
    given = {task: recipe.tasks[task].variants.get(variant, {}) for task in recipe.tasks}
    own = {name for options in given.values() for name in options}
    assert len(chosen) >= 5
    shared = [{name: value for name, value in options.items() if name not in own} for options in chosen.values()]
    assert all(options == shared[0] for options in shared)
    for task, options in given.items():
        assert chosen[task].items() >= options.items()
        if options:
            misspelt = {f"{name}_": value for name, value in options.items()}
            twin = recipe.tasks[task].model_copy(update={"variants": {variant: misspelt}})
            with pytest.raises(UsageError, match=f"no option of {variant}"):
                resolve(
                    task=task,
                    variant=variant,
                    profile=recipe.model_copy(update={"tasks": recipe.tasks | {task: twin}}),
                    seed=0,
                    overrides={},
                )


def options_of(profile, task, variant, **overrides):
    return resolve(
        task=task, variant=variant, profile=load_profile(profile), seed=0, overrides=overrides
    ).variant.options


@pytest.mark.parametrize(
    ("profile", "task", "variant", "options"),
    [
        ("official", "listops", "performer", {"kernel": "softmax", "num_features": 2, "stabiliser": 1e-6}),
        ("official", "text", "performer", {"kernel": "relu", "num_features": 0}),
        ("official", "image", "local", {"window": 64}),
        ("official", "text", "local", {"window": 50}),
        ("official", "pathfinder", "sinkhorn", {"block_size": 64}),
        ("official", "text", "linformer", {"rank": 16, "share": "key_value"}),
        ("official", "text", "sparse", {"pattern": "lra", "stride": 50, "num_summary": 10}),
        ("official", "retrieval", "synthesizer", {"kind": "random", "dot_product": True}),
        ("paper", "listops", "performer", {"kernel": "softmax", "num_features": 2}),
        ("nystromformer", "text", "reformer", {"chunk_size": 64, "num_buckets": 128, "num_hashes": 2}),
        ("nystromformer", "listops", "reformer", {"num_buckets": 64, "scores": "unit"}),
        ("nystromformer", "image", "performer", {"kernel": "softmax", "stabiliser": 1e-4}),
        ("nystromformer", "text", "linformer", {"rank": 256, "share": "key_value_by_head"}),
    ],
)
def test_the_options_of_variants_are_those_of_the_source(profile, task, variant, options):
    assert options_of(profile, task, variant).items() >= options.items()


@pytest.mark.parametrize("profile", ["official", "paper"])
def test_reformer_has_ten_chunks_in_all(profile):
    """The source pads to the next multiple of ten, by at least one, and cuts what there is into ten chunks."""
    for task in load_profile(profile).tasks:
        chosen = config(profile, task)
        length = get_task(task).max_length(get_task(task).options.model_validate(chosen.data))
        length += chosen.model.pooling == "cls"
        options = options_of(profile, task, "reformer")
        assert options["chunk_size"] == (length + 10 - length % 10) // 10
        assert (options["num_buckets"], options["scores"]) == (10, "lra")


def test_nystromformer_divides_the_scores_of_its_performer_twice():
    chosen = resolve(task="text", variant="performer", profile=load_profile("nystromformer"), seed=0, overrides={})
    head_dim = chosen.model.dim // chosen.model.num_heads
    assert chosen.variant.options["temperature"] == head_dim**0.5


def test_an_option_that_is_set_goes_before_those_of_profile_and_task():
    assert options_of("official", "image", "local", **{"variant.window": 8})["window"] == 8


@pytest.mark.parametrize("variant", available())
def test_every_variant_takes_pairs(variant):
    sizes = {"model.dim": 16, "model.mlp_dim": 16, "model.num_layers": 1, "model.max_length": 64, "data.max_length": 64}
    chosen = resolve(
        task="retrieval", variant=variant, profile=load_profile("modern"), seed=0, track="open", overrides=sizes
    )
    model = build_model(chosen, 257, 2).eval()
    tokens = torch.randint(1, 257, (3, 2, 64), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (3, 2)
    assert logits.isfinite().all()
    assert not torch.allclose(model(tokens.flip(1)), logits, rtol=1e-4, atol=1e-4)


def test_data_longer_than_the_model_is_refused():
    with pytest.raises(UsageError, match="shorter than the data"):
        config("quick", "text", track="open", **{"data.max_length": 4096})


PARTS = """
from dataclasses import dataclass, field
from attention_zoo import SequenceMixer, VariantConfig

@dataclass(frozen=True)
class Parts(VariantConfig):
    rates: dict[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 2.0}, metadata={"help": "rates by name"})

class Mixer(SequenceMixer):
    def __init__(self, config: Parts, dims): super().__init__(config, dims)
    def forward(self, x, mask=None): return x
"""


def with_options(variant, **overrides):
    return resolve(task="listops", variant=variant, profile=load_profile("quick"), seed=0, overrides=overrides)


@pytest.mark.parametrize("head", ["variant", "variants.contextpool"])
def test_an_entry_of_an_option_has_a_path_and_gives_the_same_cell(head):
    whole = with_options("contextpool", **{f"{head}.base": "local", f"{head}.base_options": {"window": 8}})
    entry = with_options("contextpool", **{f"{head}.base": "local", f"{head}.base_options.window": 8})
    assert entry.variant.options["base_options"] == {"window": 8}
    assert entry.run_id("digest") == whole.run_id("digest")


@pytest.mark.parametrize("forward", [True, False])
def test_entries_add_to_what_is_set_whole(forward):
    """In whatever order they are given."""
    chosen = with_options(
        "contextpool",
        **dict(
            [
                ("variant.base", "local"),
                ("variants.contextpool.base_options", {"window": 8, "backend": "fused"}),
                ("variant.base_options.window", 4),
            ][:: 1 if forward else -1]
        ),
    )
    assert chosen.variant.options["base_options"] == {"window": 4, "backend": "fused"}
    assert load_profile("quick").variants.get("contextpool", {}).get("base_options") is None  # nor is that changed


def test_a_default_that_no_record_can_hold_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "by_layer.py").write_text(
        PARTS.replace("dict[str, float]", "dict[int, float]").replace('"a"', "1").replace('"b"', "2")
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^variant\.rates: expected dict\[int, float\], got {'1': 1\.0, '2': 2\.0}$"):
        with_options("by_layer.py:Mixer")
    for number, default in enumerate(('{"a": 1.0, 2: 3.0}', 'float("nan")', "open")):
        name = f"odd{number}.py"
        (tmp_path / name).write_text(
            PARTS.replace("dict[str, float]", "object").replace('{"a": 1.0, "b": 2.0}', default)
        )
        with pytest.raises(UsageError, match=rf"^an option of {name}:Mixer has a value that no record can hold: "):
            with_options(f"{name}:Mixer")


@pytest.mark.parametrize("option", ["rotary", "base_options.window"])
def test_an_option_that_is_given_for_all_and_for_one_variant_is_refused(option):
    paths = [f"variant.{option}", f"variants.contextpool.{option}"]
    for first, second in (paths, paths[::-1]):
        with pytest.raises(UsageError, match=f"^{second}: {first} is given, too; leave one out"):
            with_options("contextpool", **{first: True, second: False})


def test_entries_add_to_what_an_option_has_by_default(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    default = with_options("parts.py:Mixer")
    assert with_options("parts.py:Mixer", **{"variant.rates.a": 1.0}).run_id("digest") == default.run_id("digest")
    changed = with_options("parts.py:Mixer", **{"variant.rates.a": 3.0, "variant.rates.c": 4.0})
    assert changed.variant.options["rates"] == {"a": 3.0, "b": 2.0, "c": 4.0}


@pytest.mark.parametrize(
    ("variant", "path", "message"),
    [
        ("local", "variant.window.x", "^variant.window.x: expected int, got {'x': 8}$"),
        ("local", "variants.local.windo", "^variants.local.windo: no option of local; did you mean 'window'?"),
        ("contextpool", "variant.base_option.window", "base_option.window: no option of contextpool; did you mean 'ba"),
        ("contextpool", "variant.base_options.windw", "base_options of full: windw: unknown option"),
        ("contextpool", "variant.base_options.a.b", "variant.base_options.a.b: unknown key"),
    ],
)
def test_a_wrong_option_is_told_by_the_path_that_was_written(variant, path, message):
    with pytest.raises(UsageError, match=message):
        with_options(variant, **{path: 8})


def test_an_option_of_some_of_several_variants_is_refused_with_the_path_for_one():
    check_variant_names({"variant.backend": "auto", "variants.local.window": 8}, ["full", "local"])
    check_variant_names({"variant.window": 8}, ["local", "longformer"])
    with pytest.raises(UsageError, match=r"no option of full; .* write variants\.contextpool\.base_options\.window$"):
        check_variant_names({"variant.base_options.window": 8}, ["full", "contextpool"])


@functools.cache
def quick():
    return load_file(config_folder("profiles") / "quick.yaml")


def own_profile(tmp_path, **changes):
    """Write a copy of `quick` with changes; a key with dots goes into the sections."""
    values = copy.deepcopy(quick())
    for path, value in changes.items():
        holder = values
        *sections, name = path.split("__")
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[name] = value
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML, and soon written
    return str(path)


LOOK_ALIKES = ["quick-", "quick_", "qu.ick", "qulck", "qu1ck", "0fficial", "officiaI", "0ff1c1al", "m0dern", "rnodem"]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"variants": {"Longformer": {"window": 4}}}, "variants.Longformer: no such name; did you mean 'longformer'"),
        ({"variants": {"longforner": {"window": 4}}}, "variants.longforner: no such name; did you mean 'longformer'"),
        ({"families": {"convnt": {"train": {"lr": 1.0}}}}, "families.convnt: no such name; did you mean 'convnet'"),
    ],
)
def test_settings_for_a_name_that_is_not_there_are_refused(tmp_path, part, told):
    values = load_file(config_folder("profiles") / "quick.yaml") | {"name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(values | {"variants": {"longformer": {"window": 4}, "my.py:Mine": {}}}))
    assert load_profile(str(path)).options("longformer", "listops") == {"window": 4}
    path.write_text(json.dumps(values | part))
    with pytest.raises(UsageError, match=re.escape(told)):
        load_profile(str(path))
    values["tasks"]["listops"]["variants"] = {"lokal": {"window": 2}}
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"tasks\.listops\.variants\.lokal: no such name; did you mean 'local'"):
        load_profile(str(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks__listops__train__lr": 0.5},
        {"tasks__listops__model__dropout": 0.3},
        {"tasks__listops__data__test": 17},
        {"variants__local__window": 4},
        {"tasks__listops__variants__local__window": 4},
        {"families__convnet__train__lr": 0.5},
        {"precisions": ["bfloat16"]},
        {"name": "Quick"},
        *({"name": name, "source": "elsewhere"} for name in LOOK_ALIKES),
    ],
    ids=str,
)
def test_a_changed_copy_of_a_built_in_profile_needs_a_name_of_its_own(tmp_path, changes):
    with pytest.raises(UsageError, match=r"is the name of a built-in profile, .*; give it a name of its own"):
        load_profile(own_profile(tmp_path, **changes))
    assert load_profile(own_profile(tmp_path, **(changes | {"name": "mine"}))).name == "mine"


@pytest.mark.parametrize(
    "name", ["quick\u200b", "qu\u0456ck", "quick ", "quick [dropout=0.1]", "", ".quick"], ids=ascii
)
def test_a_name_that_could_be_taken_for_another_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="name: string should match pattern"):
        load_profile(own_profile(tmp_path, name=name))


def test_the_matched_track_admits_the_precisions_that_the_source_trains_in():
    mixed = config("nystromformer", "listops", **{"train.precision": "bfloat16"})
    assert (mixed.track, mixed.train.precision) == ("matched", "bfloat16")
    assert config("nystromformer", "listops").train.precision == "float32"
    with pytest.raises(UsageError, match=r"train\.precision: fixed by the profile on the matched track"):
        config("quick", "listops", **{"train.precision": "bfloat16"})
    with pytest.raises(UsageError, match=r"train\.lr: fixed by the profile on the matched track"):
        config("nystromformer", "listops", **{"train.lr": 1.0})


def test_compiled_steps_round_lengths_up_and_are_another_run_on_either_track():
    compiled = config("quick", "listops", **{"train.compile": True})
    assert (compiled.track, compiled.train.padding) == ("matched", "coarse")
    assert config("quick", "listops").train.padding == "bucketed"
    assert compiled.run_id("d") != config("quick", "listops").run_id("d")
    assert config("quick", "listops", **{"train.compile": True, "train.padding": "coarse"}) == compiled
    own = load_profile("quick")
    recipe = own.tasks["listops"]
    spelt = recipe.model_copy(update={"train": recipe.train | {"padding": "bucketed"}})
    own = own.model_copy(update={"tasks": {"listops": spelt}})
    overrides = {"train.compile": True}
    of_the_profile = resolve(task="listops", variant="full", profile=own, seed=0, track="open", overrides=overrides)
    assert of_the_profile.train.padding == "bucketed"
    kept = config("quick", "listops", "open", **{"train.compile": True, "train.padding": "bucketed"})
    assert kept.train.padding == "bucketed"
    with pytest.raises(UsageError, match=r"train\.padding: fixed by the profile"):
        config("quick", "listops", **{"train.padding": "fixed"})


def test_an_unchanged_copy_keeps_the_name(tmp_path):
    assert load_profile(own_profile(tmp_path, title="The same", departures=[])).name == "quick"


def test_what_a_profile_says_of_a_file_holds_wherever_its_folder_is_written(tmp_path):
    profile = load_profile(
        own_profile(tmp_path, name="mine", **{"variants__plug/v.py:Mix": {"rank": 8}, "tasks__listops__variants": {}})
    )
    for name in ("plug/v.py:Mix", "./plug/v.py:Mix", "v.py:Mix", "/elsewhere/v.py:Mix"):
        assert profile.options(name, "listops") == {"rank": 8}
    assert profile.options("v.py:Mixer", "listops") == {}


def test_one_name_stands_once_in_a_profile_and_as_it_is_registered(tmp_path):
    two = {"a/v.py:Mix": {"rank": 8}, "b/v.py:Mix": {"rank": 4}}
    with pytest.raises(UsageError, match=r"variants: two names for v\.py:Mix"):
        load_profile(own_profile(tmp_path, name="mine", variants=two))
    with pytest.raises(UsageError, match=r"tasks\.Needle: write 'needle'"):
        load_profile(own_profile(tmp_path, name="mine", tasks__Needle=quick()["tasks"]["listops"]))


def test_names_that_nobody_knows_and_no_run_has_are_printed(tmp_path, capsys):
    changes = {"tasks__needel": quick()["tasks"]["listops"], "variants": {"v.py:Mxi": {}, "local": {}}}
    profile = load_profile(own_profile(tmp_path, name="mine", **changes))
    words = {"task": "listops", "profile": profile, "seeds": [0], "track": "matched", "overrides": {}}
    plan(attn="full", **words)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"Profile mine: no run of this command has {name}." for name in ("tasks.needel", "variants.v.py:Mxi")
    ]
    plan(attn="full", **words | {"profile": load_profile(own_profile(tmp_path, name="mine"))})
    assert capsys.readouterr().err == ""


def test_the_family_that_is_the_default_counts_without_being_named(tmp_path):
    profile = load_profile(own_profile(tmp_path, name="mine", families__transformer={"train": {"lr": 0.5}}))
    assert profile.recipe("listops").train["lr"] == profile.recipe("listops", "transformer").train["lr"] == 0.5
    assert profile.recipe("listops", "convnet").train["lr"] != 0.5
    words = {"task": "listops", "variant": "full", "profile": profile, "seed": 0, "track": "open"}
    ids = {resolve(**words, overrides=values).run_id("d") for values in ({}, {"model.family": "transformer"})}
    assert len(ids) == 1


def test_a_run_of_one_step_pretrains_nothing():
    """Its row would say that it did."""
    overrides = {"train.steps": 1, "pretrain.share": 0.4}
    with pytest.raises(UsageError, match=r"pretrain\.share: a run of one step has none for pretraining"):
        resolve(
            task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides=overrides
        )
    overrides["train.steps"] = 2
    config = resolve(
        task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides=overrides
    )
    assert config.pretrain_steps == 1
