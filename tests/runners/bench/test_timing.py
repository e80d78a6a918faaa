"""Order, medians and marks of the timing, on a clock that the test turns; crossover lengths on made-up curves."""

import math

import pytest

from lra.results.bench_records import Timing, bench_records
from runners.bench.crossover import crossover
from runners.bench.tables import memory_crossing, time_crossing
from runners.bench.timing import MIN_CYCLES, TimingPlan, cycle, speed_ratio, time_in_turns
from tests.reports.synthetic import add_measurement


class Clock:
    """A clock that stands still until a step moves it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def stand_ins(clock, durations, order):
    """Steps that note their turn and take the given seconds, one after the other, the last for ever."""

    def step_of(name, times):
        def step():
            order.append(name)
            clock.now += times.pop(0) if len(times) > 1 else times[0]

        return step

    return {name: step_of(name, list(times)) for name, times in durations.items()}


def test_a_cycle_goes_there_and_back():
    assert cycle(["a", "b", "c"]) == ["a", "b", "c", "c", "b", "a"]


def test_steps_are_interleaved_and_each_time_is_its_own():
    clock, order = Clock(), []
    steps = stand_ins(clock, {"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b": [10.0]}, order)
    seconds = time_in_turns(steps, TimingPlan(steps=6, seconds=1e9), clock=clock)
    assert order == ["a", "b", "b", "a"] * 3
    assert seconds == {"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b": [10.0] * 6}


def test_the_budget_ends_the_timing_but_not_before_three_cycles():
    clock, order = Clock(), []
    steps = stand_ins(clock, {"a": [1.0], "b": [1.0]}, order)
    assert len(time_in_turns(steps, TimingPlan(steps=1000, seconds=10.0), clock=clock)["a"]) == 10
    assert len(time_in_turns(steps, TimingPlan(steps=1000, seconds=0.0), clock=clock)["a"]) == 2 * MIN_CYCLES
    assert len(time_in_turns(steps, TimingPlan(steps=8, seconds=1e9), clock=clock)["b"]) == 8


def test_waiting_for_the_device_is_part_of_a_step():
    clock = Clock()

    def wait():
        clock.now += 0.5

    seconds = time_in_turns({"a": lambda: None}, TimingPlan(steps=6), clock=clock, synchronise=wait)
    assert seconds["a"] == [0.5] * 6


def test_median_spread_and_noise_mark():
    quiet = Timing(seconds=[1.0, 1.01, 1.02, 1.03, 9.0], warmup_steps=5)
    assert quiet.median == 1.02
    assert quiet.spread == pytest.approx(0.02 / 1.02)
    assert not quiet.noisy
    loud = Timing(seconds=[1.0, 1.0, 1.0, 1.2, 1.2], warmup_steps=5)
    assert loud.spread == pytest.approx(0.2)
    assert loud.noisy


def test_the_noise_mark_begins_above_ten_percent():
    assert not Timing(seconds=[95.0, 95.0, 100.0, 105.0, 105.0], warmup_steps=5).noisy
    assert Timing(seconds=[94.0, 94.0, 100.0, 105.0, 105.0], warmup_steps=5).noisy


def test_the_speed_ratio_compares_within_cycles_so_that_drift_cancels():
    own = [1.0, 1.0, 2.0, 2.0, 8.0, 8.0]
    assert speed_ratio(own, [3 * seconds for seconds in own]) == pytest.approx(3.0)
    assert speed_ratio(own, own) == 1.0


def test_one_slow_cycle_does_not_change_the_ratio():
    assert speed_ratio([1.0, 1.0, 1.0, 50.0, 1.0, 1.0], [2.0] * 6) == pytest.approx(2.0)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_crossover_is_exact_for_powers_of_the_length(power):
    lengths = [512, 1024, 2048, 4096]
    full = {length: float(length) ** 2 for length in lengths}
    other = {length: 1500.0**power * float(length) ** (2 - power) for length in lengths}
    found = crossover(other, full)
    assert found.where == "at"
    assert found.length == pytest.approx(1500.0)
    assert str(found) == "1500"


def test_crossover_outside_the_measured_lengths_is_a_bound():
    full = {1024: 1.0, 2048: 2.0}
    assert str(crossover({1024: 0.9, 2048: 1.0}, full)) == "< 1024"
    assert str(crossover({1024: 1.5, 2048: 2.0}, full)) == "> 2048"
    assert str(crossover({4096: 1.0}, full)) == "-"


def test_a_variant_that_does_not_fit_where_full_attention_does_is_not_ahead(tmp_path):
    for length in (1024, 2048, 4096):
        add_measurement(tmp_path, "full", length, seconds=0.5, mib=400)
        add_measurement(tmp_path, "local", length, seconds=0.25, mib=100, status="oom" if length == 4096 else "ok")
    own, full = (
        {record.length: record for record in bench_records(tmp_path) if record.variant == name}
        for name in ("local", "full")
    )

    def ahead(own, full):
        return str(time_crossing(own.values(), full)), str(memory_crossing(own.values(), full))

    assert ahead(own, full) == ("> 4096", "> 4096")
    assert ahead({length: own[length] for length in (1024, 2048)}, full) == ("< 1024", "< 1024")
    assert ahead(own, {length: full[length] for length in (1024, 2048)}) == ("< 1024", "< 1024")
    assert str(crossover({1024: float("inf"), 2048: 1.0}, {1024: 1.0, 2048: 2.0})) == "2048"


def test_a_variant_that_fits_where_full_attention_does_not_is_ahead(tmp_path):
    for length in (1024, 2048, 4096):
        add_measurement(tmp_path, "full", length, seconds=0.5, mib=10, status="oom" if length == 4096 else "ok")
        add_measurement(tmp_path, "local", length, seconds=1.0, mib=20)
    own, full = ([record for record in bench_records(tmp_path) if record.variant == name] for name in ("local", "full"))
    by_length = {record.length: record for record in full}
    # `lra-bench` gives no ratio where full attention has no time.
    own = [record.model_copy(update={"speed_ratio": None}) if record.length == 4096 else record for record in own]
    assert str(time_crossing(own, by_length)) == str(memory_crossing(own, by_length)) == "4096"
    neither = [record.model_copy(update={"status": "oom"}) if record.length == 4096 else record for record in own]
    assert str(time_crossing(neither, by_length)) == "> 2048"


def test_crossover_is_the_last_one_and_ignores_lengths_without_both():
    full = dict.fromkeys([1, 2, 4, 8], 1.0)
    assert crossover({1: 0.5, 2: 2.0, 4: 2.0, 8: 0.5, 16: 9.0}, full).length == pytest.approx(4 * 2**0.5)


def test_a_cost_that_is_not_known_is_not_ahead():
    full = {1024: 1.0, 2048: 1.0}
    assert str(crossover({1024: math.nan, 2048: math.nan}, full)) == "-"
    assert str(crossover({1024: 0.5, 2048: 0.5}, {1024: math.nan, 2048: 1.0})) == "< 2048"
    assert str(crossover({1024: 1.5, 2048: math.nan}, full)) == "> 1024"
