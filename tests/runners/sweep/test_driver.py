"""The driver of a sweep: what it repeats, what it leaves alone, what it makes of every way to end."""

import pytest

from lra.errors import StoreError
from lra.results import lease
from lra.results.checkpoints import list_checkpoints
from lra.results.records import Store
from runners.sweep import driver as sweep_module
from runners.sweep import progress
from runners.sweep.driver import how_it_ended, tally
from runners.sweep.launchers.base import JobResult, Launcher
from runners.sweep.launchers.local import cpu_slots, gpu_slots
from runners.sweep.state import attempts, clear_failures, collect_garbage, log_path, state_of
from runners.train.run import PreemptedRunError
from tests.runners.tiny_runs import ForkLauncher, execute, outcomes, sweep, sweep_cell, tiny, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(sweep_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sweep_module, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(sweep_module, "CLAIMED_SECONDS", 0.05)


class ScriptedEngine(Launcher):
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
    cell, launcher = (
        sweep_cell(tiny(), data),
        ScriptedEngine(ends(-11, detail="Fatal Python error"), ends(-9), ends(70)),
    )
    assert sweep([cell], store, launcher)
    assert launcher.closed
    assert [note["status"] for note in attempts(store, cell.run_id)] == ["failed"] * 3
    details = [note["detail"] for note in attempts(store, cell.run_id)]
    assert details[0] == "Fatal Python error\nkilled by SIGSEGV"
    assert "as the kernel does when memory runs out" in details[1]
    assert details[2].endswith("ended with exit code 70")
    assert state_of(store, cell).final
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == ["failed"] * 3
    assert lines[0].startswith("[0/1] seed 0")
    assert "(attempt 1, will be repeated)" in lines[0]
    assert lines[2].startswith("[1/1] seed 0")
    again = ScriptedEngine()
    assert sweep([cell], store, again)
    assert again.jobs == []


def test_a_crash_that_does_not_come_again_is_forgiven(data, store):
    cell, launcher = sweep_cell(tiny(), data), ScriptedEngine(ends(-11), succeeds(store, data))
    assert sweep([cell], store, launcher)
    assert state_of(store, cell).word == "ok"


@pytest.mark.parametrize("status", ["oom"])
def test_out_of_memory_is_not_tried_again(data, store, status):
    cell, launcher = sweep_cell(tiny(), data), ScriptedEngine(notes(store, status))
    assert sweep([cell], store, launcher)
    assert len(launcher.jobs) == 1
    assert state_of(store, cell).word == status


def test_a_timeout_is_noted_and_not_tried_again(data, store):
    cell, launcher = sweep_cell(tiny(), data), ScriptedEngine(ends(75, timed_out=True, detail="stack"))
    assert sweep([cell], store, launcher, timeout_seconds=7.0)
    assert launcher.jobs[0].timeout_seconds == 7.0
    state = state_of(store, cell)
    assert (state.word, state.final) == ("timeout", True)
    assert "no end within 7 s" in attempts(store, cell.run_id)[0]["detail"]


def test_a_pre_empted_cell_goes_on_and_not_for_ever(data, store):
    cell = sweep_cell(tiny(), data)
    launcher = ScriptedEngine(*[ends(75)] * 3, succeeds(store, data))
    assert sweep([cell], store, launcher)
    assert len(launcher.jobs) == 4
    other = sweep_cell(tiny(seed=1), data)
    launcher = ScriptedEngine(*[ends(75)] * 40)
    assert sweep([other], store, launcher)
    assert state_of(store, other).word == "failed"


def test_a_lost_process_is_a_failure(data, store):
    cell, launcher = sweep_cell(tiny(), data), ScriptedEngine(ends(None, detail="worker died"), succeeds(store, data))
    assert sweep([cell], store, launcher)
    assert attempts(store, cell.run_id)[0]["detail"] == "worker died\nthe launcher lost the process"
    assert state_of(store, cell).word == "ok"


def test_a_cell_that_another_sweep_has_is_left_to_it(data, store):
    cell = sweep_cell(tiny(), data)
    launcher = ScriptedEngine(ends(4), ends(4), succeeds(store, data))
    assert sweep([cell], store, launcher)
    assert [note["status"] for note in attempts(store, cell.run_id)] == ["ok"]
    with lease.acquire(store.root, sweep_cell(tiny(seed=1), data).run_id) as ours:
        assert ours
        looks = iter([False] * 30 + [True] * 1000)
        launcher = ScriptedEngine()
        assert not sweep([sweep_cell(tiny(seed=1), data)], store, launcher, stop=lambda: next(looks))
        assert launcher.jobs == []


def test_a_stop_reaches_the_engine_and_starts_nothing_more(data, store):
    cells = [sweep_cell(tiny(seed=seed), data) for seed in range(3)]
    launcher = ScriptedEngine(succeeds(store, data))
    assert not sweep(cells, store, launcher, stop=lambda: len(launcher.jobs) == 2)
    assert launcher.stopped
    assert len(launcher.jobs) == 2
    assert attempts(store, cells[1].run_id) == []


def test_the_time_limit_stops_the_sweep(data, store):
    launcher = ScriptedEngine()
    assert not sweep([sweep_cell(tiny(), data)], store, launcher, limit_seconds=0.0)
    assert launcher.stopped


def test_a_store_that_is_away_is_waited_for(data, store, monkeypatch):
    real, failures = Store.log_attempt, iter([True, True, False])

    def flaky(self, *rest):
        if next(failures, False):
            raise StoreError("cannot write: no such device")
        return real(self, *rest)

    monkeypatch.setattr(Store, "log_attempt", flaky)
    monkeypatch.setattr(sweep_module.time, "sleep", lambda seconds: None)
    cell = sweep_cell(tiny(), data)
    assert sweep([cell], store, ScriptedEngine(ends(1), ends(1), ends(1)))
    assert state_of(store, cell).failures == 3


def test_a_store_that_stays_away_ends_the_sweep(data, store, monkeypatch):
    def away(self, *rest):
        raise StoreError("cannot write: no such device")

    monkeypatch.setattr(Store, "log_attempt", away)
    monkeypatch.setattr(sweep_module, "STORE_SECONDS", -1.0)
    launcher = ScriptedEngine(ends(1))
    with pytest.raises(StoreError, match="no such device"):
        sweep([sweep_cell(tiny(), data)], store, launcher)
    assert launcher.stopped
    assert launcher.closed


def test_a_damaged_record_is_told_and_not_run_over(data, store):
    execute(tiny(), data, store)
    cell = sweep_cell(tiny(), data)
    path = store.record_path(cell.run_id)
    path.write_text(path.read_text().replace('"ok"', '"OK"'))
    launcher = ScriptedEngine()
    assert sweep([cell], store, launcher)
    assert launcher.jobs == []
    assert state_of(store, cell).word == "damaged"


def test_states_tell_how_far_a_cell_is(data, store):
    cell = sweep_cell(tiny(), data)
    assert state_of(store, cell).word == "not run"
    looks = iter([False, True])
    with pytest.raises(PreemptedRunError):
        execute(tiny(), data, store, stop=lambda: next(looks))
    assert (state_of(store, cell).word, state_of(store, cell).step) == ("preempted", 2)
    with lease.acquire(store.root, cell.run_id):
        assert (state_of(store, cell).word, state_of(store, cell).step) == ("running", 2)
    execute(tiny(), data, store)
    state = state_of(store, cell)
    assert (state.word, state.step) == ("ok", 6)
    store.record_path(cell.run_id).unlink()
    assert state_of(store, cell).word == "not run"


def test_the_step_of_a_running_cell_comes_with_its_claim(data, store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    position, cell = lease.Progress(steps=6), sweep_cell(tiny(), data)
    with lease.acquire(store.root, cell.run_id, position):
        position.step = 4
        while state_of(store, cell).step == 0:
            pass
        assert state_of(store, cell).step == 4


def test_retry_sets_failures_aside_and_leaves_results(data, store):
    failed, done = sweep_cell(tiny(), data), sweep_cell(tiny(seed=1), data)
    execute(done.config, data, store)
    for _ in range(2):
        assert sweep([failed], store, ScriptedEngine(*[ends(1)] * 3))
        assert state_of(store, failed).final
        assert [clear_failures(store, cell) for cell in (failed, done)] == [True, False]
        assert state_of(store, failed).word == "not run"
    kept = list((store.root / "attempts" / failed.run_id).glob("cleared-*/*.json"))
    assert len(kept) == 6
    assert state_of(store, done).word == "ok"


def test_gc_takes_what_nobody_needs(data, store):
    done, begun, busy = (sweep_cell(tiny(seed=seed), data) for seed in range(3))
    execute(done.config, data, store)
    log_path(store, done.run_id).parent.mkdir()
    log_path(store, done.run_id).write_text("output")
    for cell in (begun, busy):
        looks = iter([False, True])
        with pytest.raises(PreemptedRunError):
            execute(cell.config, data, store, stop=lambda looks=looks: next(looks))
    stray = [
        store.record_path(done.run_id).with_name(f".{done.run_id}.json.1-ab.tmp"),
        store.checkpoint_folder(begun.run_id) / ".step-000000009.pt.1-ab.tmp",
    ]
    kept = store.checkpoint_folder(busy.run_id) / ".step-000000009.pt.1-ab.tmp"
    for path in (*stray, kept):
        path.write_bytes(bytes(1000))
    with lease.acquire(store.root, busy.run_id):
        freed = [collect_garbage(store, cell) for cell in (done, begun, busy)]
    assert freed[0] > 1000
    assert freed[1:] == [1000, 0]
    assert not any(path.exists() for path in stray)
    assert kept.exists()
    assert list_checkpoints(store.checkpoint_folder(done.run_id)) == []
    assert (store.checkpoint_folder(done.run_id) / "chosen.pt").exists()
    assert not log_path(store, done.run_id).exists()
    assert [step for step, _ in list_checkpoints(store.checkpoint_folder(begun.run_id))] == [2]
    assert store.arrays(done.run_id)


def test_two_drivers_at_once_do_nothing_twice(data, store):
    cells = [sweep_cell(tiny(seed=seed), data) for seed in range(4)]
    launcher = ForkLauncher(data, store, slots=4)
    launcher.start([])
    rival = ForkLauncher(data, store, slots=4)
    jobs = sweep_module.Sweep(
        cells, store, rival, sweep_module.SweepSettings(arguments=()), progress.SweepView(store, total=4, done=0),
        lambda: False,
    )  # fmt: skip
    jobs._start_ready()
    assert sweep(cells, store, launcher)
    rival.close()
    assert len(outcomes(store)) == 4
    for cell in cells:
        assert [note["status"] for note in attempts(store, cell.run_id)] == ["ok"]


def test_slots_share_gpus_in_turn():
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in gpu_slots(["0", "3"], 2)] == ["0", "3", "0", "3"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in gpu_slots(["0", "3"], 2, 3)] == ["0", "3", "0"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in cpu_slots(2)] == ["", ""]


def test_words(data, store):
    cells = [sweep_cell(tiny(seed=seed), data) for seed in range(2)]
    execute(tiny(), data, store)
    assert tally([state_of(store, cell) for cell in [*cells, cells[1]]]) == "2 not run, 1 ok"
    assert how_it_ended(-6) == "killed by SIGABRT"
    assert how_it_ended(0) == "ended well, but without a record of this cell"


def test_a_log_tells_now_and_then_how_far_it_is(data, store, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    view = progress.SweepView(store, total=3, done=1)
    view.tick([sweep_cell(tiny(), data)], 1)
    view.done = 2
    view.tick([], 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 3 done, 1 running, 1 waiting. seed 0 at 0/6"
    assert "min left" in lines[1]


def test_a_terminal_shows_a_bar_for_the_sweep_and_each_running_cell(data, store, monkeypatch, capsys):
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    cells = [sweep_cell(tiny(seed=seed), data) for seed in range(2)]
    with progress.SweepView(store, total=2, done=0) as view:
        view.tick(cells, 0)
        view.tick(cells[1:], 0)
        assert list(view.bars) == ["seed 1"]
    shown = capsys.readouterr().err
    assert "cells" in shown
    assert "seed 0" in shown
