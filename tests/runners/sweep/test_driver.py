"""The driver of a sweep: what it repeats, what it leaves alone, what it makes of every way to end."""

import itertools
import json
import os
import time

import pytest

from lra.errors import StoreError
from lra.results import lease
from lra.results.checkpoints import list_checkpoints
from lra.results.records import Store
from reports.result_set import load_stores
from runners.sweep import driver as driver_module
from runners.sweep import progress
from runners.sweep import tables as tables_module
from runners.sweep.driver import describe_exit
from runners.sweep.launchers.base import JobResult, Launcher
from runners.sweep.launchers.local import cpu_slots, gpu_slots
from runners.sweep.state import (
    RunState,
    attempts,
    clear_failures,
    collect_garbage,
    log_path,
    state_of,
    sweep_runs,
    tally,
)
from runners.train.run import LeasedRunError, PreemptedRunError
from tests.reports.synthetic import add_other_outcome
from tests.runners.tiny_runs import ForkLauncher, execute, outcomes, sweep, sweep_run, tiny, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(driver_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(driver_module, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(driver_module, "LEASED_SECONDS", 0.05)


class ScriptedLauncher(Launcher):
    """Ends each job as the script says, without running anything; a step of the script may act on the store."""

    def __init__(self, *script):
        self.script, self.jobs, self.stopped, self.closed = list(script), [], False, False
        self.running = []

    def free_slots(self):
        return 1 - len(self.running)

    def start(self, jobs):
        self.jobs += jobs
        self.running += jobs

    def poll(self):
        if not self.script and not self.stopped:
            return []  # still running
        if self.stopped:
            ended = [JobResult(key=job.key, returncode=75) for job in self.running]
        else:
            ended = [self.script.pop(0)(job) for job in self.running]
        self.running = []
        return ended

    def stop(self):
        self.stopped = True

    def close(self):
        self.closed = True


def ends(returncode, **details):
    return lambda job: JobResult(key=job.key, returncode=returncode, **details)


def succeeds(store, data):
    def act(job):
        execute(tiny(), data, store)
        return JobResult(key=job.key, returncode=0)

    return act


def notes(store, status):
    def act(job):
        store.log_attempt(job.key, status, "as it says", {})
        return JobResult(key=job.key, returncode=4)

    return act


def test_a_crash_is_noted_with_its_signal_and_tried_three_times(data, store, capsys):
    run, launcher = (
        sweep_run(tiny(), data),
        ScriptedLauncher(ends(-11, detail="Fatal Python error"), ends(-9), ends(70)),
    )
    assert sweep([run], store, launcher)
    assert launcher.closed
    assert [note["status"] for note in attempts(store, run.run_id)] == ["failed"] * 3
    details = [note["detail"] for note in attempts(store, run.run_id)]
    assert details[0] == "Fatal Python error\nkilled by SIGSEGV"
    assert "as the kernel does when memory runs out" in details[1]
    assert details[2].endswith("ended with exit code 70")
    assert state_of(store, run).final
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == ["failed"] * 3
    assert lines[0].startswith("[0/1] seed 0")
    assert "(attempt 1, will be repeated)" in lines[0]
    assert lines[2].startswith("[1/1] seed 0")
    again = ScriptedLauncher()
    assert sweep([run], store, again)
    assert again.jobs == []


def test_a_crash_that_does_not_come_again_is_forgiven(data, store):
    run, launcher = sweep_run(tiny(), data), ScriptedLauncher(ends(-11), succeeds(store, data))
    assert sweep([run], store, launcher)
    assert state_of(store, run).word == "ok"


@pytest.mark.parametrize("status", ["oom"])
def test_out_of_memory_is_not_tried_again(data, store, status):
    run, launcher = sweep_run(tiny(), data), ScriptedLauncher(notes(store, status))
    assert sweep([run], store, launcher)
    assert len(launcher.jobs) == 1
    assert state_of(store, run).word == status


def test_a_timeout_is_noted_and_not_tried_again(data, store):
    run, launcher = sweep_run(tiny(), data), ScriptedLauncher(ends(75, timed_out=True, detail="stack"))
    assert sweep([run], store, launcher, timeout_seconds=7.0)
    assert launcher.jobs[0].timeout_seconds == 7.0
    state = state_of(store, run)
    assert (state.word, state.final) == ("timeout", True)
    assert "no end within 7 s" in attempts(store, run.run_id)[0]["detail"]
    (lost,) = load_stores([store.root]).attempts.values()  # so that tables count it
    assert (lost.status, lost.config, lost.dataset) == ("timeout", run.config, data.manifest.dataset)


def test_a_preempted_run_is_continued_a_limited_number_of_times(data, store):
    run = sweep_run(tiny(), data)
    launcher = ScriptedLauncher(*[ends(75)] * 3, succeeds(store, data))
    assert sweep([run], store, launcher)
    assert len(launcher.jobs) == 4
    other = sweep_run(tiny(seed=1), data)
    launcher = ScriptedLauncher(*[ends(75)] * 40)
    assert sweep([other], store, launcher)
    assert state_of(store, other).word == "failed"


def test_a_process_that_ends_as_if_leased_and_is_not_fails_in_the_end(data, store):
    run, launcher = sweep_run(tiny(), data), ScriptedLauncher(*[ends(4)] * 6)
    assert sweep([run], store, launcher)
    assert len(launcher.jobs) == 3 + 3
    assert [note["detail"] for note in attempts(store, run.run_id)] == ["\nended with exit code 4"] * 3
    assert state_of(store, run).word == "failed"


def test_a_lost_process_is_a_failure(data, store):
    run, launcher = sweep_run(tiny(), data), ScriptedLauncher(ends(None, detail="worker died"), succeeds(store, data))
    assert sweep([run], store, launcher)
    assert attempts(store, run.run_id)[0]["detail"] == "worker died\nthe launcher lost the process"
    assert state_of(store, run).word == "ok"


def test_a_run_that_another_sweep_holds_is_left_to_it(data, store, capsys):
    run = sweep_run(tiny(), data)
    launcher = ScriptedLauncher(ends(4), ends(4), succeeds(store, data))
    assert sweep([run], store, launcher)
    assert [note["status"] for note in attempts(store, run.run_id)] == ["ok"]
    with lease.acquire(store.root, sweep_run(tiny(seed=1), data).run_id) as ours:
        assert ours
        looks = iter([False] * 30 + [True] * 1000)
        launcher = ScriptedLauncher()
        waiting = sweep_run(tiny(seed=1), data)
        assert not sweep([waiting], store, launcher, stop=lambda: next(looks))
        assert launcher.jobs == []
        said = f"waiting for {waiting.label}: {state_of(store, waiting).detail}"
    assert capsys.readouterr().err.count(said) == 1


def test_a_run_whose_lease_cannot_be_read_is_left_to_its_holder(data, store, monkeypatch, closed_to_us):
    monkeypatch.setattr(driver_module, "STALE_SECONDS", 0.0)
    run, looks, launcher = sweep_run(tiny(), data), iter([False] * 30 + [True] * 1000), ScriptedLauncher()
    with lease.acquire(store.root, run.run_id):
        closed_to_us(store.root / "leases" / run.run_id)
        state = state_of(store, run)
        assert (state.word, state.detail.rpartition(": ")[2]) == ("running", "Permission denied")
        assert not sweep([run], store, launcher, stop=lambda: next(looks))
        assert launcher.jobs == []
        with pytest.raises(LeasedRunError, match=rf"^its lease cannot be read: .*{run.run_id}: Permission denied$"):
            execute(tiny(), data, store)


def test_a_run_whose_holder_elsewhere_stands_still_is_started(data, store, monkeypatch):
    monkeypatch.setattr(driver_module, "STALE_SECONDS", 2.0)
    run, elsewhere = sweep_run(tiny(), data), {"host": "elsewhere", "token": "a", "pid": 1}
    file, beats = store.root / "leases" / run.run_id, iter(range(9))
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(elsewhere | {"beat": 0}))
    looks = []

    def alive():  # a beat at every fifth look, nine times, after which the holder is dead
        looks.append(time.monotonic())
        if len(looks) % 5 == 0 and (beat := next(beats, None)) is not None:
            file.write_text(json.dumps(elsewhere | {"beat": beat + 1}))
        return len(looks) > 1000

    def takes_over(job):
        assert next(beats, None) is None, "started beside a living holder"
        file.unlink()
        return succeeds(store, data)(job)

    launcher = ScriptedLauncher(takes_over)
    assert sweep([run], store, launcher, stop=alive)
    assert len(launcher.jobs) == 1
    assert state_of(store, run).word == "ok"


def test_a_second_outcome_is_named_by_the_status(data, store):
    run = sweep_run(tiny(), data)
    execute(tiny(), data, store)
    assert "another outcome" not in state_of(store, run).detail
    beside = add_other_outcome(store, run.run_id)
    assert state_of(store, run).detail.endswith(f"; another outcome of the same run: {beside.name}")


def test_a_run_that_diverged_has_no_count_of_steps_and_names_its_second_outcome(data, store):
    config = tiny(**{"train.lr": 1e30, "train.warmup_steps": 0})
    run, record = sweep_run(config, data), execute(config, data, store)
    assert record.status == "diverged"
    [row] = tables_module.status_rows([run], store)
    assert (row["step"], row["steps"], row["detail"]) == (None, 6, record.detail)
    beside = add_other_outcome(store, run.run_id)
    text = tables_module.status_table(tables_module.status_rows([run], store))
    assert "-/6" in text
    assert "; another outcome of the same run: " in text
    assert state_of(store, run).detail.endswith(f"; another outcome of the same run: {beside.name}")


def test_a_plan_counts_the_seeds_that_are_left_and_says_what_it_could_not_try(data, store, monkeypatch):
    cost = execute(tiny(), data, store).cost.model_copy(update={"examples_per_second": 0.1})
    tried = {"full": cost, "linear": None}
    monkeypatch.setattr(tables_module, "_measure_cost", lambda config, home, probe: tried[config.variant.name])
    runs = [sweep_run(tiny(name, seed=seed), data) for name in tried for seed in range(3)]
    probe = tables_module.Probe(device="cpu", threads=1, slots=1)
    rows = tables_module.plan_rows(runs, store.root, data.path.parent, probe)
    assert [row["status"] for row in rows] == ["ok"] + ["not run"] * 5
    assert [row["minutes"] is None for row in rows] == [True, False, False, True, True, True]
    minutes = sum(row["minutes"] or 0 for row in rows)
    assert minutes > 1
    told = f"Left: {minutes:.0f} minutes in all on cpu, besides 3 runs that could not be tried, evaluations included"
    assert told in tables_module.plan_table(rows, probe)


def test_a_stop_reaches_the_launcher_and_starts_nothing_more(data, store):
    runs = [sweep_run(tiny(seed=seed), data) for seed in range(3)]
    launcher = ScriptedLauncher(succeeds(store, data))
    assert not sweep(runs, store, launcher, stop=lambda: len(launcher.jobs) == 2)
    assert launcher.stopped
    assert len(launcher.jobs) == 2
    assert attempts(store, runs[1].run_id) == []


def test_the_time_limit_stops_the_sweep(data, store):
    launcher = ScriptedLauncher()
    assert not sweep([sweep_run(tiny(), data)], store, launcher, limit_seconds=0.0)
    assert launcher.stopped


def test_a_store_that_is_away_is_waited_for(data, store, monkeypatch):
    real, failures = Store.log_attempt, iter([True, True, False])

    def flaky(self, *rest):
        if next(failures, False):
            raise StoreError("cannot write: no such device")
        return real(self, *rest)

    monkeypatch.setattr(Store, "log_attempt", flaky)
    monkeypatch.setattr(driver_module.time, "sleep", lambda seconds: None)
    run = sweep_run(tiny(), data)
    assert sweep([run], store, ScriptedLauncher(ends(1), ends(1), ends(1)))
    assert state_of(store, run).failures == 3


def test_a_store_that_stays_away_ends_the_sweep(data, store, monkeypatch):
    def away(self, *rest):
        raise StoreError("cannot write: no such device")

    monkeypatch.setattr(Store, "log_attempt", away)
    monkeypatch.setattr(driver_module, "STORE_SECONDS", -1.0)
    launcher = ScriptedLauncher(ends(1))
    with pytest.raises(StoreError, match="no such device"):
        sweep([sweep_run(tiny(), data)], store, launcher)
    assert launcher.stopped
    assert launcher.closed


def test_a_damaged_record_is_reported_and_not_overwritten(data, store):
    execute(tiny(), data, store)
    run = sweep_run(tiny(), data)
    path = store.record_path(run.run_id)
    path.write_text(path.read_text().replace('"ok"', '"OK"'))
    launcher = ScriptedLauncher()
    assert sweep([run], store, launcher)
    assert launcher.jobs == []
    assert state_of(store, run).word == "damaged"
    assert not clear_failures(store, run)
    assert attempts(store, run.run_id)


def test_states_show_how_far_a_run_is(data, store):
    run = sweep_run(tiny(), data)
    assert state_of(store, run).word == "not run"
    looks = iter([False, True])
    with pytest.raises(PreemptedRunError):
        execute(tiny(), data, store, stop=lambda: next(looks))
    assert (state_of(store, run).word, state_of(store, run).step) == ("preempted", 2)
    with lease.acquire(store.root, run.run_id):
        assert (state_of(store, run).word, state_of(store, run).step) == ("running", 2)
    execute(tiny(), data, store)
    state = state_of(store, run)
    assert (state.word, state.step) == ("ok", 6)
    store.record_path(run.run_id).unlink()
    assert state_of(store, run).word == "not run"


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/RUN", "leases", "attempts", "results"])
@pytest.mark.parametrize("place", ["link", "file"])
def test_a_part_of_a_store_that_is_away_is_not_taken_for_an_empty_one(data, store, part, place):
    run, looks = sweep_run(tiny(), data), iter([False, True])
    with pytest.raises(PreemptedRunError):
        execute(tiny(), data, store, stop=lambda: next(looks))
    with lease.acquire(store.root, run.run_id):
        path = store.root / part.replace("RUN", run.run_id)
        if path.exists():
            path.rename(store.root / "away")
        path.symlink_to(store.root / "nothing") if place == "link" else path.write_bytes(b"")
        with pytest.raises(StoreError, match=path.name):
            state_of(store, run)
        path.unlink()  # so that the lease can be given back
        if (store.root / "away").exists():
            (store.root / "away").rename(path)


def test_a_run_without_an_id_is_unknown_where_there_is_a_store(data, store, tmp_path):
    """As on another machine, whose data folder lacks the data: the store may hold its record."""
    execute(tiny(), data, store)
    for root, word in ((store.root, "unknown"), (tmp_path / "new", "not run")):
        [run] = sweep_runs([tiny()], tmp_path / "empty")
        state = state_of(Store(root), run)
        assert state.word == word
        assert not state.final
    assert run.problem
    assert state_of(store, run).detail == run.problem


def test_the_step_of_a_running_run_comes_with_its_lease(data, store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    position, run = lease.Progress(steps=6), sweep_run(tiny(), data)
    with lease.acquire(store.root, run.run_id, position):
        position.step = 4
        while state_of(store, run).step == 0:
            pass
        assert state_of(store, run).step == 4


def test_retry_sets_failures_aside_and_leaves_results(data, store):
    failed, done = sweep_run(tiny(), data), sweep_run(tiny(seed=1), data)
    execute(done.config, data, store)
    for _ in range(2):
        assert sweep([failed], store, ScriptedLauncher(*[ends(1)] * 3))
        assert state_of(store, failed).final
        assert [clear_failures(store, run) for run in (failed, done)] == [True, False]
        assert state_of(store, failed).word == "not run"
    kept = list((store.root / "attempts" / failed.run_id).glob("cleared-*/*.json"))
    assert len(kept) == 6
    assert state_of(store, done).word == "ok"


def test_gc_removes_what_finished_runs_do_not_need(data, store):
    done, begun, busy = (sweep_run(tiny(seed=seed), data) for seed in range(3))
    execute(done.config, data, store)
    logs = [log_path(store, done.run_id).with_name(f"{done.run_id}-{number}.log") for number in (1, 2)]
    logs[0].parent.mkdir()
    for log in logs:
        log.write_text("output")
    for run in (begun, busy):
        looks = iter([False, True])
        with pytest.raises(PreemptedRunError):
            execute(run.config, data, store, stop=lambda looks=looks: next(looks))
    stray = [
        store.record_path(done.run_id).with_name(f".{done.run_id}.json.1-ab.tmp"),
        store.checkpoint_folder(begun.run_id) / f".step-000000009.pt.{os.getpid()}-1-0123abcd.tmp",  # our number alone
    ]
    kept = store.checkpoint_folder(busy.run_id) / ".step-000000009.pt.1-ab.tmp"
    for path in (*stray, kept):
        path.write_bytes(bytes(1000))
    repetition = store.checkpoint_folder(done.run_id) / ".again.1-ab.tmp"  # killed while it was removed
    repetition.mkdir()
    (repetition / "step-000000002.pt").write_bytes(bytes(5000))
    with lease.acquire(store.root, busy.run_id):
        freed = [collect_garbage(store, run) for run in (done, begun, busy)]
    assert freed[0] > 6000
    assert freed[1:] == [1000, 0]
    assert not any(path.exists() for path in (*stray, repetition))
    assert kept.exists()
    assert list_checkpoints(store.checkpoint_folder(done.run_id)) == []
    assert (store.checkpoint_folder(done.run_id) / "chosen.pt").exists()
    assert not any(log.exists() for log in logs)
    assert [step for step, _ in list_checkpoints(store.checkpoint_folder(begun.run_id))] == [2]
    assert store.arrays(done.run_id)


def test_two_drivers_at_once_do_nothing_twice(data, store):
    runs = [sweep_run(tiny(seed=seed), data) for seed in range(4)]
    launcher = ForkLauncher(data, store, slots=4)
    launcher.start([])
    rival = ForkLauncher(data, store, slots=4)
    view = progress.SweepView(store, runs, [state_of(store, run) for run in runs])
    jobs = driver_module.Sweep(runs, store, rival, driver_module.SweepSettings(arguments=()), view, lambda: False)
    jobs._start_ready()
    assert sweep(runs, store, launcher)
    rival.close()
    assert len(outcomes(store)) == 4
    for run in runs:
        assert [note["status"] for note in attempts(store, run.run_id)] == ["ok"]


def test_slots_share_gpus_in_turn():
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in gpu_slots(["0", "3"], 2)] == ["0", "3", "0", "3"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in gpu_slots(["0", "3"], 2, 3)] == ["0", "3", "0"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in cpu_slots(2)] == ["", ""]


def test_words(data, store):
    runs = [sweep_run(tiny(seed=seed), data) for seed in range(2)]
    execute(tiny(), data, store)
    assert tally([state_of(store, run) for run in [*runs, runs[1]]]) == "2 not run, 1 ok"
    assert describe_exit(-6) == "killed by SIGABRT"
    assert describe_exit(0) == "ended with exit code 0, but without a record of this run"


def test_a_log_shows_the_progress_and_the_time_left_of_the_sweep(data, store, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    runs = [sweep_run(tiny(seed=seed), data) for seed in range(3)]
    done, new = RunState(word="ok"), RunState(word="not run")
    view = progress.SweepView(store, runs, [done, new, new])  # at 0 s
    view.tick(runs[1:2], 1)  # at 10 s
    view.finished(runs[1], done)
    view.tick([], 1)  # at 20 and 30 s: one of two runs
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 3 done, 1 running, 1 waiting. seed 1 at 0/6"
    assert lines[1] == "[2/3] seed 1: ok"
    assert lines[2] == "2 of 3 done, 0 running, 1 waiting, about 30 s left. "


def test_a_terminal_shows_a_bar_for_the_sweep_and_each_running_run(data, store, monkeypatch, capsys):
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    runs = [sweep_run(tiny(seed=seed), data) for seed in range(2)]
    with progress.SweepView(store, runs, [RunState(word="not run")] * 2) as view:
        view.tick(runs, 0)
        view.tick(runs[1:], 0)
        assert list(view.bars) == ["seed 1"]
    shown = capsys.readouterr().err
    assert "runs" in shown
    assert "seed 0" in shown
