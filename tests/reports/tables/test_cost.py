"""The table of the cost of training, from stores of made-up records."""

from reports.tables import cost
from tests.reports.synthetic import add_run, made, notes_of


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


def test_processors_are_told_apart(tmp_path):
    """A time on one model of CPU is no multiple of a time on another."""
    add_run(tmp_path, 400, speed=1000.0, environment={"device": "cpu", "cpu": "Model <7>"})
    add_run(tmp_path, 400, variant="linear", speed=3000.0, environment={"device": "cpu", "cpu": "Model <8>"})
    table = made(cost, tmp_path)
    cells = table.cells.set_index("variant")
    assert cells["device"].to_dict() == {"full": "Model <7>", "linear": "Model <8>"}
    assert cells["speed (x full)"].to_dict() == {"full": "1.00", "linear": "-"}
    assert "Trained for 1500 steps on Model <7>, Model <8>." in table.notes
