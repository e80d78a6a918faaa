"""All figures of a store: each is drawn, none is clipped, equal records give equal bytes, and names stay text."""

import math
import re
import shutil
from dataclasses import replace

import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.errors import UsageError
from reports.cli import FIGURES
from reports.figures import all_figures, draw_all
from reports.figures.style import IN_ORDER, REFERENCE_COLOUR, save
from reports.result_set import load_stores
from reports.tables import accuracy, ranks
from tests.reports.figures.helpers import clipped, is_tick, overlapping
from tests.reports.synthetic import HOSTILE, add_attempt, add_run, cell_config, five_tasks

KINDS = set(FIGURES) - {"scaling", "ranks"}
"""Scaling is drawn from measurements of lra-bench, in test_efficiency.py; ranks have a test of their own here."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    five_tasks(folder, tasks=("listops", "text"))
    add_run(folder, None, variant="full", seed=8)
    for number in range(9):
        add_run(
            folder, 300 + 5 * number, variant=f"variant_{number}", memory=16 * (number + 1), speed=900 - 50 * number
        )
    for layers in (1, 2, 4):
        for seed in range(2):
            add_run(folder, 300 + 20 * layers + seed, layers=layers, seed=seed, track="open")
    return load_stores([folder])


@pytest.fixture(scope="module")
def drawn(results):
    return list(all_figures(results))


def test_every_kind_of_figure_is_drawn(drawn):
    titles = [title for title, _ in drawn]
    assert {title.partition(":")[0].rstrip(" 12") for title in titles} == KINDS
    assert len(titles) == len(set(titles))
    assert "learning 2: ListOps, profile quick, matched track" in titles  # eleven labels in two figures


def test_bars_of_ranks_overlap_as_far_as_the_critical_difference(tmp_path):
    five_tasks(tmp_path, variants=("full", "contextpool", "linear"))
    add_run(tmp_path, 900, variant="local", task="text")  # has no rank
    figure = dict(all_figures(load_stores([tmp_path])))["ranks: profile quick, matched track"]
    (bars,) = figure.axes[0].collections
    ends = [tuple(bar[:, 0]) for bar in bars.get_segments()]
    half = 2.3437 * math.sqrt(3 * 4 / 30) / 2
    assert ends == [pytest.approx((rank - half, rank + half), abs=1e-3) for rank in (1, 2, 3)]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["linear", "contextpool", "full"]
    assert [text for text in clipped(figure) if text and not is_tick(text)] == []


def test_no_text_is_clipped(drawn):
    ticks_outside_the_axes = ("", " ")  # matplotlib keeps ticks beyond the limits, and does not draw them
    for title, figure in drawn:
        outside = [t for t in clipped(figure) if t not in ticks_outside_the_axes and not is_tick(t)]
        assert outside == [], title


@pytest.mark.nightly
def test_long_names_that_differ_at_their_end_look_different(tmp_path):
    for number in range(6):
        options = {"sigma": "learned", "placement": "branch", "weights": "uniform", "fraction": 0.5 + number}
        add_run(tmp_path, 400 + number, variant="contextpool_conv_only", options=options)
        add_run(tmp_path, 400 + number, variant="contextpool_conv_only", options=options | {"sigma": "fixed"})
        add_run(tmp_path, 400, variant="contextpool_conv_only", options=options | {"placement": "stream"})
    checked = 0
    for title, figure in all_figures(load_stores([tmp_path])):
        assert [t for t in clipped(figure) if not is_tick(t)] == [], title
        if title.startswith("seeds"):
            names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        elif title.startswith("learning"):
            names = [text.get_text() for text in figure.axes[0].texts if "PREVIEW" not in text.get_text()]
        else:
            names = [text.get_text() for text in figure.axes[0].texts if "PREVIEW" not in text.get_text()]
            assert overlapping(figure, figure.axes[0].texts) == []
        names = [re.sub(r"\n[\d,]+ MiB|\s", "", name) for name in names]
        assert len(set(names)) == len(names) >= 4, title
        checked += len(names)
    assert checked == 3 * 18 + 18  # three figures of all, and the curves


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
@pytest.mark.nightly
def test_equal_records_give_equal_bytes(results, tmp_path, form):
    part = results.for_profile("quick", "open")
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    count = 0
    for (title, first), (_, second) in list(zip(all_figures(part), all_figures(part), strict=True))[2:]:
        contents = [save(f, tmp_path / f"{i}.{form}", form).read_bytes() for i, f in enumerate((first, second))]
        assert contents[0] == contents[1], title
        assert contents[0].startswith(starts[form])
        count += 1
    assert count == 4


def test_draw_all_names_its_files_after_the_figures(results, tmp_path):
    paths = draw_all(results.for_profile("quick", "open"), tmp_path, "svg")
    where = "listops-profile-quick-open-track"
    names = [f"seeds-{where}", f"speed-score-and-memory-{where}-cpu", f"front-{where}-cpu"]
    names += [f"state-{where}", f"learning-{where}"]
    assert [path.name for path in paths] == [f"{name}.svg" for name in [*names, f"depth-{where}"]]


def test_figures_of_profiles_that_look_alike_have_files_of_their_own_names(tmp_path):
    names = ["my.prof", "my-prof", "my_prof"]
    for number, name in enumerate(names):
        for seed in (0, 1):
            add_run(tmp_path, 400 + 10 * number + seed, seed=seed, profile=name)
    paths = draw_all(load_stores([tmp_path]), tmp_path / "out", "svg")
    seeds = [path.name for path in paths if path.name.startswith("seeds-")]
    assert seeds == [f"seeds-listops-profile-{name}-matched-track.svg" for name in sorted(names)]


@pytest.mark.nightly
def test_hostile_names_are_drawn_as_text(tmp_path):
    for number, name in enumerate(HOSTILE):
        add_run(tmp_path, 400 + number, variant=name, title=HOSTILE[0], baselines={HOSTILE[1]: 10.0})
    paths = draw_all(load_stores([tmp_path]), tmp_path / "out", "svg")
    assert len(paths) == 5
    for path in paths:
        assert path.parent == tmp_path / "out"
        assert "<script" not in path.read_text()


def test_nothing_to_draw_says_so(tmp_path):
    add_run(tmp_path, None)
    with pytest.raises(UsageError, match="no record here has a number"):
        draw_all(load_stores([tmp_path]), tmp_path, "png")


def test_no_label_lies_on_another(drawn):
    for title, figure in drawn:
        for axes in figure.axes:
            names = [text for text in axes.texts if "PREVIEW" not in text.get_text()]
            assert overlapping(figure, names) == [], title


@pytest.mark.nightly
def test_points_of_all_variants_differ_in_colour_or_marker(tmp_path):
    variants = ("full", *IN_ORDER)
    for number, variant in enumerate(variants):
        add_run(tmp_path, 300 + 5 * number, variant=variant, memory=16 * (number + 1), speed=900 - 20 * number)
    figures = {title.partition(":")[0]: figure for title, figure in all_figures(load_stores([tmp_path]))}
    for kind in ("seeds", "speed, score and memory", "front"):
        axes = figures[kind].axes[0]
        points = [
            dots for dots in axes.collections if isinstance(dots, PathCollection) and len(dots.get_offsets()) == 1
        ]
        assert len(points) == len(variants), kind
        looks = {(to_hex(dots.get_edgecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in points}
        assert len(looks) == len(variants), kind
        assert overlapping(figures[kind], axes.texts) == [], kind


@pytest.mark.nightly
def test_titles_are_drawn_on_demand(results):
    part = results.for_profile("quick", "open")
    plain, titled = list(all_figures(part)), list(all_figures(part, titled=True))
    assert [title for title, _ in plain] == [title for title, _ in titled]
    assert {figure.get_suptitle() for _, figure in plain} == {""}
    assert all("ListOps, profile quick, open track" in figure.get_suptitle() for _, figure in titled)
    assert len(titled) == 6


def test_full_attention_is_in_every_figure_of_curves(drawn):
    curves = [figure for title, figure in drawn if title.startswith("learning ")]
    assert len(curves) == 2
    for figure in curves:
        assert [text.get_text() for text in figure.axes[0].texts].count("full (3/4)") == 1  # one was lost
        assert [line.get_color() for line in figure.axes[0].lines].count(REFERENCE_COLOUR) == 1


def test_full_attention_is_drawn_beside_a_selection_without_it(tmp_path):
    for variant in ("full", "local", "mine"):
        add_run(tmp_path, 400, variant=variant)
        add_run(tmp_path, 400, variant=variant, seed=1)
    add_run(tmp_path, 400, variant="full", task="text")  # a task without the selected variant
    results = load_stores([tmp_path])
    chosen = results.filter(lambda config: config.variant.name == "mine")
    assert len(chosen.with_full().records) == 4
    assert len(results.with_full().records) == len(results.records)
    drawn = dict(all_figures(chosen))
    assert all("ListOps" in title for title in drawn)
    (curves,) = (figure for title, figure in drawn.items() if title.startswith("learning"))
    assert [text.get_text() for text in curves.axes[0].texts] == ["full (2)", "mine (2)"]


def test_full_attention_is_drawn_beside_another_form_of_it(tmp_path):
    for variant, options in (("full", {}), ("full", {"rotary": True}), ("linear", {})):
        add_run(tmp_path, 400, variant=variant, options=options)
    results = load_stores([tmp_path])
    forms = {
        name: {
            record.config.variant.options["rotary"]
            for record in results.filter(wanted).with_full().records.values()
            if record.config.variant.name == "full"
        }
        for name, wanted in {
            "rotary": lambda config: config.variant.options.get("rotary") is True,
            "plain": lambda config: config.variant.options.get("rotary") is False,
            "linear": lambda config: config.variant.name == "linear",
        }.items()
    }
    assert forms == {"rotary": {False, True}, "plain": {False}, "linear": {False}}


def test_rows_that_lack_seeds_of_their_suite_say_so(tmp_path):
    for variant, seeds in (("full", 3), ("linear", 2)):
        for seed in range(seeds):
            add_run(tmp_path, 500 + seed, variant=variant, seed=seed)
    drawn = dict(all_figures(replace(load_stores([tmp_path]), seeds=frozenset(range(3)))))
    selected = load_stores([tmp_path]).filter(lambda config: config.variant.name == "linear")
    of_suite = replace(selected, seeds=frozenset((0, 1, 9))).with_full()
    assert {record.config.seed for record in of_suite.records.values()} == {0, 1}
    assert len(of_suite.records) == 4
    (dots,) = (figure for title, figure in drawn.items() if title.startswith("seeds"))
    assert [text.get_text() for text in dots.axes[0].get_yticklabels()] == ["linear\n(not run 1)", "full"]
    (curves,) = (figure for title, figure in drawn.items() if title.startswith("learning"))
    assert [text.get_text() for text in curves.axes[0].texts] == ["full (3)", "linear (2/3)"]


@pytest.mark.nightly
def test_a_variant_has_one_colour_whatever_else_is_drawn(tmp_path):
    def colours(*variants):
        shutil.rmtree(tmp_path, ignore_errors=True)
        five_tasks(tmp_path, variants=variants, tasks=("listops",))
        found = {}
        for title, figure in all_figures(load_stores([tmp_path])):
            if title.startswith("learning"):
                texts, lines = figure.axes[0].texts, figure.axes[0].lines
                found = {t.get_text().partition(" (")[0]: x.get_color() for t, x in zip(texts, lines, strict=True)}
        return found

    many, few = colours("full", "local", "mine", "contextpool"), colours("mine", "contextpool", "another")
    assert len(set(many.values())) == 4
    assert many["full"] == REFERENCE_COLOUR
    assert {name: few[name] for name in ("mine", "contextpool")} == {n: many[n] for n in ("mine", "contextpool")}


def test_figures_of_states_and_depths_say_how_many_runs_survived(tmp_path):
    for seed in range(3):
        for variant, lost in (("linear", False), ("mamba", seed > 0)):
            for layers in (1, 2):
                config = resolve(
                    task="listops", variant=variant, profile=load_profile("quick"), seed=seed, track="open",
                    overrides={"model.num_layers": layers},
                )  # fmt: skip
                add_run(tmp_path, None if lost else 500 + seed, config=config, variant_title=variant)
    found = {title.partition(":")[0]: figure for title, figure in all_figures(load_stores([tmp_path]))}
    for name, words in (("state", "(1 of 3 runs)"), ("depth", "mamba (2 of 6 runs)")):
        texts = [text.get_text().replace("\n", " ") for text in found[name].findobj(Text)]
        assert any(words in text for text in texts), texts


def test_the_mean_of_the_runs_that_are_left_is_on_no_front(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 500, seed=seed)
        add_run(tmp_path, None if seed else 600, variant="linear", seed=seed)
    found = {title.partition(":")[0]: figure for title, figure in all_figures(load_stores([tmp_path]))}
    for name in ("front", "state"):
        for axes in found[name].axes:
            (front,) = axes.lines
            assert set(front.get_ydata()) == {50.0}


def test_a_figure_of_a_selection_counts_runs_of_full_attention_without_a_record(tmp_path):
    for seed in range(3):
        for task in ("listops", "text"):
            add_run(tmp_path, 500, variant="linear", task=task, seed=seed)
            if seed:
                add_attempt(tmp_path, "oom", task=task, seed=seed)
            else:
                add_run(tmp_path, 600, task=task)
    chosen = load_stores([tmp_path]).filter(lambda config: config.variant.name == "linear").with_full()
    assert accuracy(chosen, "quick", "matched").cells.loc["full"].tolist()[:2] == ["60.00 (1/3), OOM (2/3)"] * 2


def test_figures_of_one_device_say_how_many_runs_were_on_it(tmp_path):
    for seed, cpu in enumerate("AAB"):
        for variant in ("full", "linear"):
            environment = {"device": "cpu", "cpu": cpu if variant == "linear" else "A", "torch": "2"}
            add_run(tmp_path, 500 + seed, variant=variant, seed=seed, environment=environment)
    shown = {}
    for title, figure in all_figures(load_stores([tmp_path])):
        if title.startswith("front"):
            texts = [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]
            shown[title.rpartition(", ")[2]] = {text.partition(" runs)")[0] for text in texts}
    assert {"full", "linear (2 of 3"} <= shown["A"]
    assert "linear (1 of 3" in shown["B"]


def test_figures_say_how_many_runs_of_a_suite_are_there(tmp_path):
    for variant, seeds in (("full", 2), ("linear", 1)):
        for seed in range(seeds):
            config = resolve(
                task="listops", variant=variant, profile=load_profile("quick"), seed=seed, track="open", overrides={}
            )
            add_run(tmp_path, 500, config=config, variant_title=variant)
    results = replace(load_stores([tmp_path]), seeds=frozenset(range(2)))
    for title, figure in all_figures(results):
        if title.startswith(("front", "speed", "state")):
            texts = [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]
            assert any("linear (1 of 2 runs)" in text for text in texts), (title, texts)
            assert not any("full (" in text for text in texts)


def test_rows_with_many_settings_keep_the_count_of_their_runs_and_look_different(tmp_path):
    base = cell_config(variant="local", track="open")
    for seed in range(3):
        for layers, lr, steps in ((4, 0.001, 100), (4, 0.0005, 200), (2, 0.0005, 200)):
            train = base.train.model_copy(update={"lr": lr, "steps": steps, "warmup_steps": steps // 10})
            model = base.model.model_copy(update={"dropout": lr, "attention_dropout": lr, "num_layers": layers})
            config = base.model_copy(update={"model": model, "train": train, "seed": seed})
            lost = seed and layers == 4 and lr < 0.001
            add_run(tmp_path, None if lost else 400 + 50 * layers + seed, config=config)
    checked = set()
    for title, figure in all_figures(load_stores([tmp_path])):
        kind = title.partition(":")[0]
        axes = figure.axes[-1]
        texts = axes.get_yticklabels() if kind == "seeds" else axes.texts
        names = [text.get_text() for text in texts if "PREVIEW" not in text.get_text()]
        assert len(set(names)) == len(names) == 3 - (kind == "depth"), title
        assert clipped(figure) == [] or all(is_tick(text) for text in clipped(figure)), title
        if kind not in ("seeds", "learning"):
            count = "(4 of 6 runs)" if kind == "depth" else "(1 of 3 runs)"
            assert any(count in name.replace("\n", " ") for name in names), names
        checked.add(kind)
    assert checked == KINDS


def test_ranks_of_names_that_differ_at_their_end_are_told_apart(tmp_path):
    for task in ("listops", "text"):
        for size in (5, 7):
            options = {"initial_sigma": 2.0, "kernel_size": size}
            add_run(
                tmp_path, 500 + size, variant="contextpool", variant_title="ContextPool", task=task, options=options
            )
    figure = dict(all_figures(load_stores([tmp_path])))["ranks: profile quick, matched track"]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [name.partition("kernel_size=")[2] for name in names] == ["7]", "5]"]
    assert [text for text in clipped(figure) if text and not is_tick(text)] == []


def test_ranks_of_a_selection_are_those_of_the_table_and_say_what_is_left_out(tmp_path):
    for number, variant in enumerate(("local", "performer", "linear", "full")):
        for task in ("listops", "text"):
            for seed in range(2):
                lost = seed and variant == "linear"
                add_run(tmp_path, None if lost else 500 + 100 * number, variant=variant, task=task, seed=seed)
    chosen = load_stores([tmp_path]).filter(lambda config: config.variant.name != "full")
    axes = dict(all_figures(chosen))["ranks: profile quick, matched track"].axes[0]
    table = ranks(chosen, "quick", "matched").cells
    assert [text.get_text() for text in axes.get_yticklabels()] == ["performer", "local"] == table["variant"].tolist()
    assert axes.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert "missing: linear" in axes.figure.get_supxlabel().replace("\n", " ")
    assert [text for text in clipped(axes.figure) if text and not is_tick(text)] == []


@pytest.mark.parametrize("cost", ["speed", "memory"])
def test_a_run_that_lacks_a_cost_takes_no_figure_from_the_others(tmp_path, cost):
    for variant in ("full", "linear"):
        for seed in range(2):
            lacks = {cost: None} if (variant, seed) == ("linear", 1) else {}
            add_run(tmp_path, 500 + seed, variant=variant, seed=seed, **lacks)
    drawn = [figure for title, figure in all_figures(load_stores([tmp_path])) if title.startswith(("speed", "front"))]
    assert len(drawn) == 2
    for figure in drawn:
        texts = [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]
        assert any("linear (1 of 2 runs)" in text for text in texts), texts


@pytest.mark.parametrize("cost", ["speed", "memory"])
def test_a_row_without_a_known_cost_is_named_as_left_out(tmp_path, cost):
    for variant in ("full", "linear", "conv"):
        for seed in range(2):
            add_run(tmp_path, 500, variant=variant, seed=seed, **({cost: None} if variant == "linear" else {}))
    drawn = [figure for title, figure in all_figures(load_stores([tmp_path])) if title.startswith(("speed", "front"))]
    words = {figure.get_supxlabel().replace("\n", " ") for figure in drawn}
    assert words == {"Left out, with no run of known speed and memory: linear"}
