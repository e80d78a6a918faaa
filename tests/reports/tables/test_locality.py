"""The tables and the figure of locality: each run has a name of its own."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data.split import Split
from lra.errors import UsageError
from lra.measure.locality import influence, mixing
from lra.models.transformer import build_model, mixers
from lra.tasks import info_of
from reports.figures.locality import locality_panels
from reports.figures.style import house_style
from reports.render import plain_values
from reports.tables.locality import PROBES, Audit, Looked, answers, locality
from tests.reports.synthetic import add_run, cell_config


def audit(distance):
    weights = torch.zeros(9)
    weights[distance] = 1.0
    return Audit(mixing=mixing(torch.arange(9), weights), sigma=[], influences=torch.ones(2, 9))


def runs(folder):
    """Runs of one variant and seed that differ in one thing each."""
    base = cell_config(variant="local", track="open")
    configs = [
        base.model_copy(update={"train": base.train.model_copy(update={"lr": 0.01})}),
        base,
        base.model_copy(update={"seed": 1}),
        base.model_copy(update={"profile": "mine"}),
        base.model_copy(update={"track": "matched"}),
    ]
    made = [add_run(folder, 400 + number, config=config) for number, config in enumerate(configs)]
    return [*made, add_run(folder, 400, config=base, digest="c" * 64)]


def test_no_two_runs_have_one_name_and_the_ids_stand_in_the_order_of_the_rows(tmp_path):
    records = runs(tmp_path)
    tables = [
        locality(records, [audit(number) for number in range(6)], examples=8, places=8),
        answers(records, [{4: float(number)} for number in range(6)], "hide", 100),
    ]
    for table in tables:
        names = table.cells[["profile", "task", "variant", "seed"]]
        assert not names.duplicated().any()
        assert names.iloc[0].tolist() == ["quick, open track", "ListOps dddddddd", "local [lr=0.01]", "0"]
        assert plain_values(table)["runs"] == [record.run_id for record in records]
        assert "ListOps: made up." in table.notes
    assert tables[0].cells["mean distance"].tolist() == [f"{number:.2f}" for number in range(6)]
    alone = locality(records[:2], [audit(1), audit(2)], examples=8, places=8).cells
    assert alone[["task", "variant"]].to_numpy().tolist() == [
        ["ListOps", "local [lr=0.01]"],
        ["ListOps", "local [lr=0.001]"],
    ]
    assert "profile" not in alone


@pytest.mark.parametrize("other", [{"profile": "mine"}, {"track": "open"}])
def test_single_seeds_of_two_profiles_or_tracks_are_a_preview(tmp_path, other):
    configs = [cell_config(seed=0), cell_config(seed=1).model_copy(update=other)]
    records = [add_run(tmp_path, 400, config=config) for config in configs]
    for table in (
        locality(records, [audit(1), audit(2)], examples=8, places=8),
        answers(records, [{4: 1.0}, {4: 2.0}], "hide", 100),
    ):
        assert [note for note in table.notes if note.startswith("PREVIEW")]


def test_data_and_settings_are_told_apart_between_profiles_and_tracks(tmp_path):
    open_track = cell_config(track="open")
    configs = [
        cell_config(),
        open_track.model_copy(update={"train": open_track.train.model_copy(update={"lr": 0.01})}),
        cell_config(profile="mine"),
    ]
    records = [
        add_run(tmp_path, 400, config=config, dataset="long" if config.profile == "mine" else "short")
        for config in configs
    ]
    cells = locality(records, [audit(1), audit(2), audit(3)], examples=8, places=8).cells
    assert cells["task"].tolist() == ["ListOps (short)", "ListOps (short)", "ListOps (long)"]
    assert cells["variant"].tolist() == ["full [lr=0.001]", "full [lr=0.01]", "full"]
    with house_style():
        figure = locality_panels(records, [audit(1), audit(2), audit(3)], {})
    legend = [text.get_text().replace("\n", " ") for text in figure.subfigs[0].legends[0].get_texts()]
    assert legend[2].startswith("mine, matched track, ListOps (long), full,")
    assert "lr=0.01]" in legend[1]


def test_the_figure_names_the_runs_like_the_tables(tmp_path):
    records = runs(tmp_path)
    with house_style():
        figure = locality_panels(records, [audit(number + 1) for number in range(6)], {})
    legend = [text.get_text().replace("\n", " ") for text in figure.subfigs[0].legends[0].get_texts()]
    maps = [axes.get_title() for axes in figure.subfigs[1].axes]
    assert len(set(legend)) == len(records)
    assert len(set(maps)) == len(maps) == 4
    assert legend[0].startswith("quick, open track, ListOps")
    assert all(name.endswith("seed 1" if number == 2 else "seed 0") for number, name in enumerate(legend))


@pytest.mark.parametrize("pooling", ["masked_mean", "cls"])
@pytest.mark.parametrize("hidden", [False, True])
def test_what_the_model_takes_for_padding_is_no_token(pooling, hidden):
    """Black pixels of Pathfinder: as places they would have distance 0, and a width of 0."""
    config = resolve(
        task="needle", variant="contextpool", profile=load_profile("probes"), seed=0, track="open",
        overrides={"model.pooling": pooling},
    )  # fmt: skip
    info = info_of(config)
    model = build_model(config, info.vocab_size, info.num_classes).eval()
    model.embedding.zero_is_padding = hidden
    tokens = np.arange(24, dtype=np.uint8) % 7 * (np.arange(24) % 3 != 0)
    split = Split(tokens=tokens, offsets=np.array([0, 24]), labels=np.zeros(1, dtype=np.uint8))
    run = SimpleNamespace(
        record=SimpleNamespace(run_id="f" * 64, config=config), model=lambda: model,
        data=lambda _: SimpleNamespace(split=lambda _: split),
    )  # fmt: skip
    found = Looked(run, None).audit(1, 24)
    prefix, generator = int(pooling == "cls"), torch.Generator().manual_seed(0)
    real = [place for place in range(24) if not hidden or tokens[place] > 0]
    batch = torch.tensor(tokens[None].astype(np.int64))
    pairs = [
        (abs(other - place), float(weights[prefix + other]))
        for place in real
        for weights in [influence(model, batch, None, prefix + place, PROBES, generator)]
        for other in real
    ]
    assert found.mixing == mixing(*map(torch.tensor, zip(*pairs, strict=True)))
    widths = [mixer.token_statistics()["sigma"][0, real].mean().item() for mixer in mixers(model)]
    assert found.sigma == pytest.approx(widths)
    assert min(found.sigma) > 0.5


@pytest.mark.parametrize(("padding", "length"), [("bucketed", 24), ("fixed", 300)])
def test_examples_are_padded_as_the_evaluation_pads_them(padding, length, monkeypatch):
    """A mixer of others may read how long its input is, and its gradients may not be finite."""
    config = resolve(
        task="needle", variant="full", profile=load_profile("probes"), seed=0, track="open",
        overrides={"train.padding": padding, "model.max_length": 300},
    )  # fmt: skip
    info = info_of(config)
    model = build_model(config, info.vocab_size, info.num_classes).eval()
    split = Split(tokens=np.ones(24, dtype=np.uint8), offsets=np.array([0, 24]), labels=np.zeros(1, dtype=np.uint8))
    run = SimpleNamespace(
        record=SimpleNamespace(run_id="f" * 64, config=config), model=lambda: model,
        data=lambda _: SimpleNamespace(split=lambda _: split),
    )  # fmt: skip
    looked = Looked(run, None)
    [batch] = looked.batches(1)
    assert batch.tokens.shape == (1, length)
    torch.nn.init.constant_(next(model.head.parameters()), torch.nan)
    with pytest.raises(UsageError, match="run ffffffffffff: its outputs are not finite where a token sees 8 tokens"):
        looked.accuracy(1, 8, "hide")
    for value in (math.nan, math.inf, 0.0):
        monkeypatch.setattr("reports.tables.locality.influence", lambda *_, value=value: torch.full((300,), value))
        with pytest.raises(
            UsageError, match="run ffffffffffff: the influences of its tokens are not finite, or all ar"
        ):
            looked.audit(1, 3)


@pytest.mark.parametrize(("grid", "sigma"), [("off", "3.0"), ("auto", "3.0 rows")])
def test_widths_on_a_grid_are_in_rows(grid, sigma, tmp_path):
    """Three rows of an image are many tokens."""
    config = resolve(
        task="image", variant="contextpool", profile=load_profile("quick"), seed=0, overrides={"variant.grid": grid}
    )
    record = add_run(tmp_path, 400, config=config)
    measured = Audit(mixing=audit(1).mixing, sigma=[3.0], influences=torch.ones(2, 9))
    assert locality([record], [measured], examples=8, places=8).cells["sigma"].tolist() == [sigma]
