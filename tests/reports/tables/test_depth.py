"""The table of depth, from stores of made-up records."""

import math

import pytest

from reports.figures import all_figures
from reports.result_set import load_stores
from reports.site.build import make_boards
from reports.tables import depth
from tests.reports.synthetic import BASE, add_attempt, add_run, made


def test_depth_has_accuracy_operations_and_time(tmp_path):
    for layers, right in ((1, 300), (2, 400), (4, 350)):
        for seed in range(2):
            add_run(tmp_path, right + 10 * seed, seed=seed, layers=layers, track="open", flops=1_500_000 * layers,
                    speed=BASE.train.batch_size * 10 / layers)  # fmt: skip
    add_run(tmp_path, 200, layers=1, track="open", variant="linear", flops=None)
    add_run(tmp_path, None, layers=2, track="open", variant="linear")
    add_attempt(tmp_path, "oom", layers=4, track="open", variant="linear")
    cells = made(depth, tmp_path, track="open").cells
    assert cells[["variant", "layers", "test accuracy (%)", "operations (MFLOPs)"]].to_numpy().tolist() == [
        ["full", "1", "30.50 ± 0.71 (2)", "1.5"],
        ["full", "2", "40.50 ± 0.71 (2)", "3.0"],
        ["full", "4", "35.50 ± 0.71 (2)", "6.0"],
        ["linear", "1", "20.00 (1)", "-"],
        ["linear", "2", "diverged (1/1)", "2.0"],
        ["linear", "4", "OOM (1/1)", "-"],
    ]
    assert cells["step time (s)"].tolist()[:3] == ["1.000", "2.000", "4.000"]
    assert cells["step time (s)"].tolist()[5] == "-"


@pytest.mark.parametrize("lacks", [{"speed": None}, {"flops": None}])
def test_a_cost_of_some_of_the_runs_is_named(tmp_path, lacks):
    for layers in (1, 2):
        for seed in range(3):
            add_run(tmp_path, 400, seed=seed, layers=layers, track="open", **(lacks if layers * seed == 2 else {}))
    notes = [note for note in made(depth, tmp_path, track="open").notes if " has " in note]
    what = "step time" if "speed" in lacks else "operations"
    assert notes == [f"full on ListOps with {layers} layers has {what} of 2 of 3 runs." for layers in (1, 2)]


def test_devices_that_count_differently_share_no_number_of_operations(tmp_path):
    for seed, device in enumerate(("cpu", "Card", "Other card")):
        for layers in (1, 2):
            flops = 10_000_000 * layers * (1 if device == "cpu" else 3)
            where = {"device": device, "torch": "2"}
            add_run(tmp_path, 400, seed=seed, layers=layers, track="open", flops=flops, environment=where)
    cells = made(depth, tmp_path, track="open").cells
    assert cells["operations (MFLOPs)"].tolist() == [
        "30.0 (Card), 30.0 (Other card), 10.0 (cpu)",
        "60.0 (Card), 60.0 (Other card), 20.0 (cpu)",
    ]
    results = load_stores([tmp_path])
    (figure,) = [figure for title, figure in all_figures(results) if title.startswith("depth")]
    assert [axes.get_xlabel() for axes in figure.axes] == ["layers"]
    assert figure.get_supxlabel() == "No panel by operations: not counted alike for all\nruns"
    (board,) = make_boards(results, [])
    assert all(math.isnan(row.megaflops) for row in board.rows)
