"""Figures: each is drawn, none is clipped, equal records give equal bytes, and names stay text."""

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lra.errors import StoreError, UsageError
from reports.cli import FIGURES
from reports.figures import all_figures, draw_all
from reports.figures.lines import on_common_steps
from reports.figures.pooling_widths import draw_supports, load_supports
from reports.figures.scatter import _number_points, front
from reports.figures.style import house_style, new_figure, plain_ticks, save
from reports.result_set import load_stores
from tests.reports.synthetic import HOSTILE, add_run, five_tasks

ROOT = Path(__file__).resolve().parents[3]
KINDS = set(FIGURES) - {"scaling"}  # drawn from measurements of lra-bench, in test_efficiency.py
TINY = {
    "name": "tiny", "title": "For tests", "source": "this test",
    "tasks": {"listops": {
        "data": {"train": 64, "validation": 32, "test": 32, "min_length": 4, "max_length": 24, "max_depth": 3},
        "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "max_length": 24},
        "train": {"batch_size": 8, "steps": 4, "eval_every": 2, "lr": 0.01},
    }},
}  # fmt: skip


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


def clipped(figure):
    """List the texts that reach beyond the paper."""
    canvas = FigureCanvasAgg(figure)
    with house_style():
        canvas.draw()
        width, height = figure.bbox.width, figure.bbox.height
        texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
        assert len(texts) > 3
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [t for t, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]


def test_no_text_is_clipped(drawn):
    ticks_outside_the_axes = ("", " ")  # matplotlib keeps ticks beyond the limits, and does not draw them
    for title, figure in drawn:
        outside = [t for t in clipped(figure) if t not in ticks_outside_the_axes and not is_tick(t)]
        assert outside == [], title


def test_long_names_that_differ_at_their_end_look_different(tmp_path):
    for number in range(6):
        options = {"sigma": "learned", "placement": "branch", "weights": "uniform", "fraction": 0.5 + number}
        add_run(tmp_path, 400 + number, variant="contextpool_conv_only", options=options)
        add_run(tmp_path, 400 + number, variant="contextpool_conv_only", options=options | {"sigma": "fixed"})
        add_run(tmp_path, 400, variant="contextpool_conv_only", options=options | {"placement": "stream"})
    checked = 0
    for title, figure in all_figures(load_stores([tmp_path])):
        assert [t for t in clipped(figure) if not is_tick(t)] == [], title
        texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
        if title.startswith("seeds"):
            names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        elif title.startswith("learning"):
            names = [text.get_text() for text in figure.legends[0].get_texts()]
        else:
            (key,) = [text for text in texts if text.startswith("1  ")]
            names = re.split(r"\n(?=\d)", key)
        names = [re.sub(r"^\d+|: .* MiB|\s", "", name) for name in names]
        assert len(set(names)) == len(names) >= 4, title
        checked += len(names)
    assert checked == 3 * 18 + 18  # three figures of all, and the curves


def test_numbers_of_points_that_coincide_step_aside():
    figure = new_figure(3.0)
    axes = figure.subplots()
    x, y = pd.Series([1.0, 1.0, 1.0, 9.0]), pd.Series([1.0, 1.0, 1.01, 9.0])
    axes.scatter(x, y)
    _number_points(axes, x, y)
    figure.draw_without_rendering()
    places = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts]  # without their lines
    assert len(places) == 4
    centres = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in places]
    apart = [math.dist(a, b) * 72 / figure.dpi for a, b in itertools.combinations(centres, 2)]
    assert min(apart) > 7.0
    assert [text.arrow_patch is None for text in axes.texts] == [True, False, False, True]


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1000), (497, 676), (430, 480), (8, 21), (41e3, 55e3), (500, 1250), (2, 9)]
)
def test_ticks_of_a_logarithmic_axis_are_round_and_apart(low, high):
    axes = new_figure(2.0).subplots()
    axes.set(xscale="log", xlim=(low, high))
    plain_ticks(axes.xaxis, low, high)
    ticks = axes.xaxis.get_majorticklocs()
    assert 2 <= len(ticks) <= 5
    assert all(len(f"{tick:g}".rstrip("0").replace(".", "").strip("0")) <= 3 for tick in ticks)
    assert all((b / a) ** 7.5 > high / low for a, b in itertools.pairwise(ticks))


def is_tick(text):
    return text.replace("\u2212", "").replace(",", "").replace(".", "").isdigit()


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_equal_records_give_equal_bytes(results, tmp_path, form):
    part = results.for_profile("quick", "open")
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    count = 0
    for (title, first), (_, second) in list(zip(all_figures(part), all_figures(part), strict=True))[2:]:
        contents = [save(f, tmp_path / f"{i}.{form}", form).read_bytes() for i, f in enumerate((first, second))]
        assert contents[0] == contents[1], title
        assert contents[0].startswith(starts[form])
        count += 1
    assert count == 3


def test_draw_all_names_its_files_after_the_figures(results, tmp_path):
    paths = draw_all(results.for_profile("quick", "open"), tmp_path, "svg")
    where = "listops-profile-quick-open-track"
    names = [f"seeds-{where}", f"speed-score-and-memory-{where}-cpu", f"front-{where}-cpu", f"learning-{where}"]
    assert [path.name for path in paths] == [f"{name}.svg" for name in [*names, f"depth-{where}"]]


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


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_front_is_what_nothing_beats(points):
    cost, score = np.array(points, dtype=float).T
    beaten = [
        any((c <= cost[i] and s >= score[i]) and (c < cost[i] or s > score[i]) for c, s in points)
        for i in range(len(points))
    ]
    assert front(cost, score).tolist() == [not each for each in beaten]


def test_curves_are_averaged_where_all_have_a_step():
    first = (np.array([10.0, 20.0, 30.0]), np.array([1.0, 2.0, 3.0]))
    second = (np.array([20.0, 30.0, 40.0]), np.array([6.0, 7.0, 8.0]))
    steps, scores = on_common_steps([first, second])
    assert steps.tolist() == [20.0, 30.0]
    assert scores.tolist() == [[2.0, 3.0], [6.0, 7.0]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Really train two tiny runs, with `lra-run`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [
        sys.executable, "-c", "from runners.cli.run import main; main()", "--attn", "contextpool,full", "--task",
        "listops", "--profile", str(folder / "tiny.yaml"), "--data-dir", str(folder / "home"), "--store",
        str(folder / "store"), "--device", "cpu", "--threads", "1", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder, load_stores([folder / "store"])


def pick(results, variant):
    return next(record for record in results.records.values() if record.config.variant.name == variant)


def test_pooling_shows_the_widths_that_training_recorded(trained, tmp_path):
    folder, results = trained
    record = pick(results, "contextpool")
    store = results.stores[record.run_id]
    supports = load_supports(record, store, folder / "home", count=5)
    assert supports.layers == [0, 1]
    assert supports.indices == [0, 1, 2, 3, 4]
    for widths, names in zip(supports.sigma, supports.tokens, strict=True):
        assert widths.shape == (2, len(names))
        assert np.all(widths > 0)
        assert names[0] in {"[MIN", "[MAX", "[MED", "[SM"}
        assert names[-1] == "]"
    everything = load_supports(record, store, folder / "home", count=32)
    mean = np.concatenate([widths[0] for widths in everything.sigma]).mean()
    last = store.arrays(record.run_id)["curve.layer0.sigma_mean"][-1]  # over a batch of validation, not over test
    assert mean == pytest.approx(last, rel=0.5)
    with house_style():
        drawn = [draw_supports(supports, "a run", [0, 1]) for _ in range(3)]
    assert [t for t in clipped(drawn[0]) if not is_tick(t)] == []
    contents = [save(figure, tmp_path / f"{i}.svg", "svg").read_bytes() for i, figure in enumerate(drawn[1:])]
    assert contents[0] == contents[1]


def test_pooling_refuses_what_has_no_widths_and_weights_that_are_gone(trained):
    folder, results = trained
    full, pooled = pick(results, "full"), pick(results, "contextpool")
    store = results.stores[full.run_id]
    with pytest.raises(UsageError, match=r"'full' of run .* has no widths"):
        load_supports(full, store, folder / "home")
    lost = pooled.model_copy(update={"run_id": "0" * 64})
    with pytest.raises(
        StoreError,
        match=r"checkpoints of run 000000000000 are not in the store .* only its record; lra-run --config .*\.json",
    ):
        load_supports(lost, store, folder / "home")
    other = pooled.model_copy(update={"data_digest": "0" * 64})
    with pytest.raises(StoreError, match="holds other data"):
        load_supports(other, store, folder / "home")
    with pytest.raises(UsageError, match="ended without weights"):
        load_supports(pooled.model_copy(update={"outcome": None, "status": "diverged"}), store, folder / "home")
