"""The names of rows: the default is the bare name, and whatever tells runs apart is named."""

import pytest

from attention_zoo import RegistrationError, get_variant
from lra.config.labels import (
    Row,
    default_options,
    differing,
    fits,
    names_no_more,
    row_name,
    row_names,
    settings_of,
    shown_value,
    split_row,
    usual_elsewhere,
)
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import PretrainConfig, StartConfig, VariantChoice
from lra.names import legible


def config(variant="contextpool", profile="quick", track="open", **overrides):
    return resolve(
        task="listops", variant=variant, profile=load_profile(profile), seed=0, track=track, overrides=overrides
    )


def names(*configs, leave_out=()):
    rows = [
        Row(
            variant=c.variant.name,
            shown=c.variant.name,
            heading=c.task,
            profile=c.profile,
            task=c.task,
            settings=settings_of(c),
        )
        for c in configs
    ]
    return row_names(rows, leave_out)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "contextpool"),
        ({"variant.placement": "branch"}, "contextpool"),
        ({"variant.placement": "stream"}, "contextpool [placement=stream]"),
        ({"variant.sigma_min": 0.5, "variant.base": "local"}, "contextpool [base=local, sigma_min=0.5]"),
        ({"train.lr": 0.5}, "contextpool"),
        ({"train.precision": "bfloat16"}, "contextpool [precision=bfloat16]"),
        ({"train.padding": "coarse"}, "contextpool [padding=coarse]"),
        ({"train.compile": True, "train.padding": "bucketed"}, "contextpool [compile=True, padding=bucketed]"),
        ({"train.compile": True, "variant.sigma_min": 0.5}, "contextpool [compile=True, sigma_min=0.5]"),
    ],
)
def test_a_run_alone_is_named_by_what_is_not_its_default(overrides, name):
    assert row_name(config(**overrides)) == name
    assert row_name(config(**overrides), "Shown") == name.replace("contextpool", "Shown")


def test_the_options_that_a_profile_gives_and_its_rotary_positions_are_the_default():
    assert row_name(config("linformer", "nystromformer", "matched")) == "linformer"
    assert row_name(config("linformer", "nystromformer", "matched", **{"variant.rank": 8})) == "linformer [rank=8]"
    for positions in ("rotary", "alibi", "t5"):
        assert row_name(config("full", **{"model.positions": positions})) == "full"
    rotary = resolve(
        task="listops", variant="full", profile=load_profile("rotary"), seed=0, overrides={"variant.rotary": False}
    )
    assert row_name(rotary) == "full [rotary=False]"


def test_what_a_profile_does_to_its_inputs_is_named_where_a_run_does_otherwise_alone():
    """A profile that denoises on one task and mirrors on another would else have two rows for one variant."""
    profile = load_profile("rotary")
    for task in ("listops", "text", "image"):
        run = resolve(task=task, variant="full", profile=profile, seed=0, track="open", overrides={})
        assert row_name(run) == "full"
    changed = {"train.augment": False, "pretrain.share": 0.1}
    run = resolve(task="listops", variant="full", profile=profile, seed=0, track="open", overrides=changed)
    assert row_name(run) == "full [share=0.1, augment=False]"
    usual = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides={})
    augmented = {"train.augment": True}
    assert row_name(usual) == "full"
    run = resolve(
        task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides=augmented
    )
    assert row_name(run) == "full [augment=True]"


def test_a_share_of_one_variant_does_not_name_those_that_others_have_of_the_profile():
    profile = load_profile("spt")

    def row(variant, task, **overrides):
        run = resolve(task=task, variant=variant, profile=profile, seed=0, overrides=overrides)
        return Row(variant=variant, shown=variant, heading=task, profile="spt", task=task, settings=settings_of(run))

    share = {"pretrain.share": 0.1}
    rows = [row("full", "listops", **share), row("linear", "listops"), row("linear", "text"), row("full", "listops")]
    assert row_names(rows) == ["full [share=0.1]", "linear", "linear", "full"]


def test_an_option_that_is_the_default_on_some_tasks_is_known():
    """The profile gives `local` a window of 64 on some tasks; asked for on all, those stand in the row without it."""

    def elsewhere(task, **overrides):
        run = resolve(task=task, variant="local", profile=load_profile("official"), seed=0, overrides=overrides)
        return row_name(run), usual_elsewhere("local", "official", task, settings_of(run))

    window = {"variant.window": 64}
    assert elsewhere("listops") == ("local", {})
    name, tasks = elsewhere("listops", **window)
    assert name == "local [window=64]"
    assert {"image", "pathfinder"} <= set(tasks["window=64"]) <= {"image", "pathfinder", "pathx"}
    assert elsewhere("image", **window) == ("local", {})
    assert elsewhere("listops", **{"variant.window": 3}) == ("local [window=3]", {})


def test_what_a_profile_pretrains_with_is_named_where_a_run_does_otherwise_alone():
    """Without its name, a run without the pretraining of its profile would stand for one with it."""

    def name(task="listops", **overrides):
        return row_name(
            resolve(task=task, variant="full", profile=load_profile("spt"), seed=0, track="open", overrides=overrides)
        )

    assert name() == name("text") == "full"
    assert name(**{"pretrain.share": 0.0}) == "full [share=0.0]"
    assert name(**{"pretrain.share": 0.1}) == "full [share=0.1]"
    assert name(**{"pretrain.lr_scale": 1.0}) == "full [lr_scale=1.0]"


def test_options_that_a_profile_gives_on_one_task_are_the_default_there_and_the_values_as_before_are_named():
    def run(task, **overrides):
        profile = load_profile("official")
        return resolve(task=task, variant="performer", profile=profile, seed=0, overrides=overrides)

    assert names(run("listops"), run("text")) == ["performer", "performer"]
    assert row_name(run("text", **{"variant.kernel": "softmax", "variant.num_features": 2})) == (
        "performer [kernel=softmax, num_features=2]"
    )
    # `stabiliser` came later and 0.0 is its value as before, which is not hashed
    assert names(run("listops"), run("listops", **{"variant.stabiliser": 0.0})) == [
        "performer",
        "performer [stabiliser=0.0]",
    ]


def test_the_default_is_bare_beside_others_and_blocks_of_8_are_another_row():
    assert names(config("bigbird"), config("bigbird", **{"variant.block_size": 8})) == [
        "bigbird",
        "bigbird [block_size=8]",
    ]


def test_a_setting_that_is_not_the_variants_is_named_where_runs_differ_in_it_whatever_their_variants():
    runs = config("full"), config("local", **{"train.lr": 0.5})
    assert names(*runs) == ["full [lr=0.001]", "local [lr=0.5]"]
    assert names(*runs, leave_out=["train.lr"]) == ["full", "local"]
    assert names(runs[0], runs[0]) == ["full", "full"]


def test_of_a_variant_that_is_not_here_the_options_are_named_in_which_its_rows_differ(monkeypatch):
    def row(window, origin, task="text"):
        settings = {"variant.window": window, "variant.wide": True, "variant.origin": origin}
        return Row(variant="gone", shown="gone", heading=task, profile="quick", task=task, settings=settings)

    assert default_options("gone", "quick", "text", "sinusoidal") == {}
    assert row_names([row(1, "a"), row(2, "a")]) == ["gone [window=1]", "gone [window=2]"]
    assert row_names([row(1, "a"), row(1, "b")]) == ["gone [origin=a]", "gone [origin=b]"]
    # On two tasks too: one row of both would have an average of two variants.
    assert row_names([row(1, "a"), row(1, "b", "image")]) == ["gone [origin=a]", "gone [origin=b]"]
    known = "lra.config.labels.default_options"
    monkeypatch.setattr(known, lambda *_: {"variant.window": "1", "variant.wide": "true"})
    assert row_names([row(1, "a"), row(1, "b", "image")]) == ["gone [origin=a]", "gone [origin=b]"]
    monkeypatch.undo()
    assert row_names([row(1, "a"), row(2, "a", "image")]) == ["gone [window=1]", "gone [window=2]"]
    assert row_names([row(1, ""), row(1, "a")]) == ["gone", "gone [origin=a]"]


def test_the_program_of_a_layer_is_named_where_the_rows_of_a_variant_differ_in_it():
    """On two tasks too, like that of a variant."""

    def row(task, **settings):
        return Row(variant="conv", shown="conv", heading=task, profile="quick", task=task, settings=settings)

    first, second = (row(task, **{"model.pool_origin": program}) for task, program in (("text", "a"), ("image", "b")))
    assert row_names([first, second]) == ["conv [pool_origin=a]", "conv [pool_origin=b]"]
    assert row_names([first, row("image", **{"model.pool_origin": "a"})]) == ["conv", "conv"]
    assert row_names([first, row("image")]) == ["conv [pool_origin=a]", "conv"]
    assert row_names([first], elsewhere=differing([("conv", first.settings), ("conv", {})])) == ["conv [pool_origin=a]"]


def test_a_name_that_data_and_model_share_means_that_of_the_model():
    settings = {"data.max_length": 64, "model.max_length": 128, "data.seed": 3}
    assert [fits(settings, f"max_length={value}") for value in (64, 128)] == [False, True]
    assert fits(settings, "seed=3")


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("", True),
        ("rank=8", True),
        ("lr=0.001, rank=8", True),
        ("rank=9", False),
        ("rank=8, rotary=3", False),
        ("named={'a': 1, 'b': 2}", True),
        ("named={'a': 1}", False),
        ("rank", False),
        ("rank=8, and more", False),
        ("8", False),
    ],
)
def test_a_row_fits_what_is_typed_in_brackets(text, fit):
    assert fits({"variant.rank": 8, "train.lr": 0.001, "variant.named": {"a": 1, "b": 2}}, text) == fit
    assert split_row(f"a b [{text}]" if text else "a b") == ("a b", text)


def test_a_table_of_records_runs_no_file_that_a_record_names(tmp_path):
    file = tmp_path / "theirs.py"
    file.write_text("raise SystemExit('it ran')\n")
    assert default_options(f"{file}:Theirs", "quick", "text", "sinusoidal") == {}
    with pytest.raises(RegistrationError, match=r"theirs.py:1: `raise SystemExit\('it ran'\)`: SystemExit: it ran"):
        get_variant(f"{file}:Theirs")


@pytest.mark.parametrize(
    ("one", "other"), [(2, "2"), (True, "True"), (None, "None"), (0.5, "0.5"), ("x", "x, temp=2.0"), ("", "''")]
)
def test_values_that_differ_never_share_a_name(one, other):
    rows = [
        Row(
            variant="gone",
            shown="gone",
            heading="h",
            profile="mine",
            task="text",
            settings={"variant.w": value, "variant.n": 1},
        )
        for value in (one, other)
    ]
    names = row_names(rows)
    assert names[0] != names[1]
    for row, name in zip(rows, names, strict=True):
        assert [fits(each.settings, split_row(name)[1]) for each in rows] == [each is row for each in rows]


def test_a_task_of_a_file_is_not_loaded_for_a_name(tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('loaded')")
    pretrain = PretrainConfig(share=0.4, mask_rate=0.15, loss="cross_entropy")
    changed = config("full").model_copy(update={"task": f"{trap}:Task", "pretrain": pretrain})
    assert row_name(changed) == "full [loss=cross_entropy, mask_rate=0.15, share=0.4]"
    assert default_options("full", "quick", f"{trap}:Task", "sinusoidal") == default_options(
        "full", "quick", "listops", "sinusoidal"
    )


def test_runs_that_start_from_one_run_with_two_outcomes_have_two_names():
    def started(run, weights, seed):
        start = StartConfig(run=run * 64, weights=weights * 64, steps=10)
        return config("full").model_copy(update={"start": start, "seed": seed})

    assert names(started("a", "b", 0), started("c", "d", 1)) == [f"full [from={run * 12}]" for run in "ac"]
    assert names(started("a", "b", 0), started("a", "d", 1)) == [
        f"full [from={'a' * 12}] (start.weights={weights * 12})" for weights in "bd"
    ]


def test_a_changed_program_of_a_task_is_named():
    changed = [config("full").model_copy(update={"task_origin": f"mine {number}"}) for number in (1, 2)]
    assert names(*changed) == ['full [origin="mine 1"]', 'full [origin="mine 2"]']


def test_an_option_with_the_name_of_another_setting_is_told_from_it():
    choices = [VariantChoice(name="theirs", options={"share": share}, origin="p") for share in (0.2, 0.4)]
    first, second = (config("full").model_copy(update={"variant": choice}) for choice in choices)
    pretrain = PretrainConfig(share=0.2, mask_rate=0.15, loss="cross_entropy")
    rows = [
        Row(variant="theirs", shown="Theirs", heading="h", profile="mine", task="listops", settings=settings)
        for settings in (
            {"variant.share": 0.2},
            {"pretrain.share": 0.2},
        )
    ]
    assert len(set(row_names(rows))) == 2
    assert len(set(names(first, second, first.model_copy(update={"pretrain": pretrain})))) == 3


def test_text_that_cannot_be_seen_is_written_out():
    values = ["a", "a\u200b", "a ", "a  b", "a b", "a\u00a0b", "é b", "e\u0301 b"]
    written = [shown_value(value) for value in values]
    assert written[:5] == ["a", r'"a\u200b"', '"a "', r'"a \u0020b"', '"a b"']
    assert len({legible(text) for text in written}) == len(values)


def test_a_compiled_run_is_usual_nowhere_with_other_padding():
    """Where a run is compiled, the padding of the profile is another than the one that it has without."""
    compiled = config(**{"train.compile": True, "train.padding": "bucketed"})
    assert usual_elsewhere("contextpool", "quick", compiled.task, settings_of(compiled)) == {}


@pytest.mark.parametrize("beside", ["numerics_version=2", "lr=0.1", "origin=a"])
def test_what_is_not_the_variants_does_not_keep_a_row_from_being_its_default(beside):
    settings = {"numerics_version": 2, "train.lr": 0.1, "task.origin": "a", "variant.window": 4}
    assert names_no_more(f"full [{beside}]", settings, "")
    assert not names_no_more(f"full [window=4, {beside}]", settings, "")
    assert names_no_more(f"full [window=4, {beside}]", settings, "window=4")
