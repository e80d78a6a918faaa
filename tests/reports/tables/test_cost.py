"""The table of the cost of training, from stores of made-up records."""

import json
from dataclasses import replace

import pytest

from lra.config.labels import varying
from lra.results.records import EARLIER, Store
from reports.result_set import load_stores
from reports.tables import accuracy, cost, sort_rows
from tests.reports.synthetic import add_attempt, add_run, made, notes_of


def test_cost_is_relative_to_full_of_the_same_recipe(tmp_path):
    for layers in (2, 4):
        add_run(tmp_path, 400, layers=layers, track="open", speed=1000.0 * layers, memory=100, flops=5_000_000 * layers)
        add_run(tmp_path, 400, layers=layers, track="open", variant="linear", speed=3000.0 * layers, memory=25,
                flops=2_000_000 * layers)  # fmt: skip
    add_run(tmp_path, 400, track="open", variant="conv", flops=None)
    table = made(cost, tmp_path, track="open")
    cells = table.cells.set_index("variant")
    for layers in (2, 4):
        row = cells.loc[f"linear [num_layers={layers}]"]
        assert (row["speed (x full)"], row["peak memory (x full)"], row["peak memory (MiB)"]) == ("3.00", "0.25", "25")
        assert (row["operations (MFLOPs)"], row["operations (x full)"]) == (f"{2 * layers}.0", "0.40")
    assert cells.loc["conv [num_layers=2]", ["operations (MFLOPs)", "operations (x full)"]].tolist() == ["-", "-"]
    assert "matrix products, convolutions and fused attention only" in notes_of(table)
    assert "another recipe" not in notes_of(table)


def test_there_is_no_ratio_to_a_peak_of_no_bytes(tmp_path):
    add_run(tmp_path, 400, memory=0)
    add_run(tmp_path, 400, variant="linear", memory=25)
    cells = made(cost, tmp_path).cells.set_index("variant")
    assert cells["peak memory (MiB)"].to_dict() == {"full": "0", "linear": "25"}
    assert cells["peak memory (x full)"].to_dict() == {"full": "-", "linear": "-"}
    assert cells["speed (x full)"].to_dict() == {"full": "1.00", "linear": "1.00"}


def test_a_variant_without_any_cost_is_named_with_the_reason(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 400, seed=seed)
        add_attempt(tmp_path, "oom", variant="linear", seed=seed)
    assert "linear on ListOps has no cost: OOM (2/2)." in made(cost, tmp_path).notes


def test_seeds_are_those_that_the_medians_are_of(tmp_path):
    for seed, right in enumerate((400, None, None)):
        add_run(tmp_path, right, seed=seed)
    assert made(cost, tmp_path).caption.endswith(", 3 seeds")


def test_seeds_on_two_devices_are_counted_apart(tmp_path):
    """Each has a row, and medians, of its own."""
    for seed, cpu in enumerate("ABB"):
        add_run(tmp_path, 400, seed=seed, environment={"device": "cpu", "cpu": cpu, "torch": "2"})
    assert made(cost, tmp_path).caption.endswith(", 1 to 2 seeds")


def test_seeds_of_a_cost_that_some_runs_lack_are_in_the_caption(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400, seed=seed, speed=None if seed else 9.0, flops=None)
    assert made(cost, tmp_path).caption.endswith(", 1 to 3 seeds")


def test_a_median_of_survivors_says_of_how_many_runs_it_is(tmp_path):
    """What ran out of memory is not in the peak memory, and what diverged at once has no speed."""
    for seed in range(3):
        add_run(tmp_path, 400, seed=seed, flops=None)  # what none of the runs has is - in the table
        add_run(tmp_path, None if seed else 400, variant="linear", seed=seed, speed=None if seed == 1 else 9.0)
        if seed:
            add_attempt(tmp_path, "oom", variant="local", seed=seed)
        else:
            add_run(tmp_path, 400, variant="local", seed=seed)
    results = load_stores([tmp_path])
    local = "local on ListOps has the cost of 1 of 3 runs: OOM (2/3)."
    linear = "linear on ListOps has speed of 2 of 3 runs: diverged (1/3)."
    notes = [note for note in cost(results, "quick", "matched").notes if " has " in note]
    assert notes == [linear, local]
    suite = cost(replace(results, seeds=frozenset(range(4))), "quick", "matched")
    assert [note for note in suite.notes if " has " in note] == [
        "full on ListOps has the cost of 3 of 4 runs.",
        "linear on ListOps has speed of 2 of 4 runs, peak memory and operations of 3 of 4 runs: diverged (1/3).",
        local.replace("of 3", "of 4"),
    ]


def test_a_row_that_lost_seeds_is_not_sorted_by_the_mean_of_the_others(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400, seed=seed)
        add_run(tmp_path, None if seed else 500, variant="linear", seed=seed)
    table = sort_rows(made(cost, tmp_path), "score")
    assert table.cells["variant"].tolist() == ["full", "linear"]


def test_processors_are_told_apart(tmp_path):
    """A time on one model of CPU is no multiple of a time on another."""
    add_run(tmp_path, 400, speed=1000.0, environment={"device": "cpu", "cpu": "Model <7>"})
    add_run(tmp_path, 400, variant="linear", speed=3000.0, environment={"device": "cpu", "cpu": "Model <8>"})
    table = made(cost, tmp_path)
    cells = table.cells.set_index("variant")
    assert cells["device"].to_dict() == {"full": "Model <7>", "linear": "Model <8>"}
    assert cells["speed (x full)"].to_dict() == {"full": "1.00", "linear": "-"}
    assert "Trained for 1500 steps on Model <7>, Model <8>." in table.notes


def test_ratios_refer_to_full_attention_with_its_default_options_alone(tmp_path):
    """With other options it is another model, such as one without a fused kernel."""
    add_run(tmp_path, 400, speed=8000.0, options={"backend": "reference"})
    add_run(tmp_path, 400, variant="linear", speed=3000.0)
    table = made(cost, tmp_path)
    assert table.cells.set_index("variant")["speed (x full)"].tolist() == ["-", "-"]
    assert "is in the table: full [backend=reference] on ListOps, linear on ListOps." in notes_of(table)
    add_run(tmp_path, 400, speed=1000.0)
    table = made(cost, tmp_path)
    cells = table.cells.set_index("variant")
    assert "No ratios" not in notes_of(table)
    assert cells["speed (x full)"].to_dict() == {"full": "1.00", "full [backend=reference]": "8.00", "linear": "3.00"}


@pytest.mark.parametrize(
    ("name", "device"),
    [("threads", "cpu"), ("processes", "cpu"), ("processes", "Card"), ("torch", "Card"),
     ("deterministic_algorithms", "Card"), ("library_settings", "cpu"), ("cpu_capability", "cpu"),
     ("float32_matmul_precision", "Card"), ("cuda", "Card"), ("cudnn", "Card"), ("tf32", "Card")],
)  # fmt: skip
def test_speeds_under_other_conditions_are_told_apart(name, device, tmp_path):
    alike = {"device": device, "cpu": "Model <7>", "threads": 1, "processes": 1, "torch": 1}
    alike |= dict.fromkeys(["deterministic_algorithms", "library_settings", "cpu_capability"], 1)
    alike |= dict.fromkeys(["float32_matmul_precision", "cuda", "cudnn", "tf32"], 1)  # the numbers stand for themselves
    shown = name.replace("_", " ")
    where = "Model <7>" if device == "cpu" else device
    add_run(tmp_path, 400, speed=1000.0, environment=alike)
    add_run(tmp_path, 400, variant="linear", speed=3000.0, environment=alike)
    table = made(cost, tmp_path)
    assert table.cells["device"].tolist() == [where, where]
    assert table.cells["speed (x full)"].tolist() == ["1.00", "3.00"]
    add_run(tmp_path, 400, variant="linear", seed=1, speed=9000.0, environment=alike | {name: 8})
    table = made(cost, tmp_path)
    found = table.cells[["variant", "device", "speed (tokens/s)", "speed (x full)"]].to_numpy().tolist()
    assert sorted(found) == [
        ["full", f"{where}, {shown} 1", "1,000", "1.00"],
        ["linear", f"{where}, {shown} 1", "3,000", "3.00"],
        ["linear", f"{where}, {shown} 8", "9,000", "-"],
    ]


def test_the_speed_of_a_run_in_two_environments_is_that_of_neither(tmp_path):
    environment = {"device": "cpu", "processor": "CPU X", "threads": 8}
    joined = environment | {EARLIER: [environment | {"threads": 1}]}
    add_run(tmp_path, 400, variant="full", environment=environment)
    add_run(tmp_path, 400, variant="linear", environment=joined)
    table = made(cost, tmp_path)
    devices = table.cells["device"].tolist()
    assert len(set(devices)) == 2
    assert devices[1].endswith(", in part under another environment")
    assert table.cells.set_index("variant")["speed (x full)"].to_dict() == {"full": "1.00", "linear": "-"}


@pytest.mark.parametrize(("name", "device"), [("threads", "Card"), ("cpu_capability", "Card"), ("tf32", "cpu")])
def test_what_changes_no_speed_on_a_kind_of_device_parts_no_rows(name, device, tmp_path):
    for seed in range(2):
        add_run(tmp_path, 400, seed=seed, environment={"device": device, "cpu": "Model <7>", "torch": 1, name: seed})
    assert made(cost, tmp_path).cells["device"].tolist() == ["Model <7>" if device == "cpu" else device]


def test_what_older_records_do_not_name_parts_no_rows_unless_others_differ_in_it(tmp_path):
    device = {"device": "cpu", "cpu": "Model <7>", "torch": 1}
    add_run(tmp_path, 400, environment=device)
    add_run(tmp_path, 400, seed=1, environment=device | {"cpu_capability": "AVX2"})
    assert made(cost, tmp_path).cells["device"].tolist() == ["Model <7>"]
    add_run(tmp_path, 400, seed=2, environment=device | {"cpu_capability": "AVX512"})
    found = sorted(made(cost, tmp_path).cells["device"])
    assert found == [f"Model <7>, cpu capability {name}" for name in ("AVX2", "AVX512", "unknown")]


def test_medians_over_the_runs_of_one_device_say_of_how_many_runs_they_are(tmp_path):
    for seed, full, conv in ((0, "A", "A"), (1, "A", "B"), (2, "B", "B")):
        for variant, device in (("full", full), ("conv", conv), ("linear", "A")):
            add_run(tmp_path, 400, variant=variant, seed=seed, environment={"device": "cpu", "cpu": device})
    assert [note for note in made(cost, tmp_path).notes if "has the cost" in note] == [
        "conv on ListOps has the cost of 1 of 3 runs on A and of 2 of 3 runs on B.",
        "full on ListOps has the cost of 2 of 3 runs on A and of 1 of 3 runs on B.",
    ]


def test_costs_that_are_known_of_unlike_many_runs_are_counted_apart(tmp_path):
    for seed in range(3):
        add_run(tmp_path, 400, seed=seed, speed=None if seed == 0 else 9.0, memory=None if seed < 2 else 64)
        add_run(tmp_path, 400, variant="conv", seed=seed, flops=None if seed else 2_000_000)
    assert [note for note in made(cost, tmp_path).notes if " has " in note] == [
        "conv on ListOps has operations of 1 of 3 runs.",
        "full on ListOps has speed of 2 of 3 runs, peak memory of 1 of 3 runs.",
    ]


def backwards(value):
    if isinstance(value, dict):
        return {name: backwards(inner) for name, inner in reversed(value.items())}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


def test_the_order_of_keys_in_the_file_of_a_record_changes_no_table(tmp_path):
    """A database or an editor may write them in another one; the checksum does not cover it."""
    runs = [(name, seed) for name in ("full", "local", "mlp_only") for seed in (0, 1)]
    records = [
        add_run(tmp_path, 300 + number, variant=variant, seed=seed, speed=1000.0 + 100 * number)
        for number, (variant, seed) in enumerate(runs)
    ]
    before = [made(table, tmp_path).cells.to_string() for table in (cost, accuracy)]
    for record in records[1::2]:
        file = Store(tmp_path).record_path(record.run_id)
        file.write_text(json.dumps(backwards(json.loads(file.read_text()))))
    assert [made(table, tmp_path).cells.to_string() for table in (cost, accuracy)] == before
    assert varying([{"data.shares": {"a": 1, "b": 2}}, {"data.shares": {"b": 2, "a": 1}}]) == []
