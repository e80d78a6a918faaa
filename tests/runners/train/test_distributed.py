"""One run over several processes: it computes what one process does, stops as one, and goes on to the same bits."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lra.errors import LraError, UsageError
from lra.results.records import Store
from runners.cli.run import check_team
from runners.train.distributed import ALONE, Place, Team, own_device, place
from runners.train.run import RunOptions, execute_run, run_worker_rank
from tests.runners.tiny_runs import TINY, execute, outcomes, tiny, tiny_data

ROOT = Path(__file__).resolve().parents[3]
CONTEXT = multiprocessing.get_context("fork")
LOST = "LostProcessError: another process of this run has ended"
PLAIN = {"model.dropout": 0.0, "model.attention_dropout": 0.0}
# Clipping and Adam divide by the size of the gradients, which would hide a wrong factor; without clipping and with a
# large eps it shows.
TELLING = {"train.eps": 1.0, "train.lr": 0.3, "train.clip_norm": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


def together(action, folder, size=2, team=Team):
    """Run `action(team)` in forked processes that form a team; return what each gave, errors as their text."""
    answers = [CONTEXT.Pipe(duplex=False) for _ in range(size)]

    def child(rank):
        store = dist.FileStore(str(folder / "rendezvous"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        try:
            answer = action(team(rank, size))
        except (LraError, RuntimeError) as error:
            answer = f"{type(error).__name__}: {error}"
        answers[rank][1].send(answer)
        os._exit(0)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    processes = [CONTEXT.Process(target=child, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for _, sender in answers:
        sender.close()
    told = []
    for receiver, _ in answers:
        try:
            told.append(receiver.recv())
        except EOFError:
            told.append("died")
    for process in processes:
        process.join()
    return told


def share_cell(config, data, folder, stop=lambda rank: False, **settings):
    """Return the action of a process: its part of a cell, leading or following."""

    def action(team):
        execution = RunOptions(
            device=torch.device("cpu"), progress=False, team=team, **{"checkpoint_seconds": 1e9} | settings
        )
        run = execute_run if team.leads else run_worker_rank
        answer = run(config, data, Store(folder), execution, lambda: stop(team.rank))
        return answer.outcome if team.leads else answer

    return action


def chosen(folder, config, data):
    path = Store(folder).checkpoint_folder(config.run_id(data.digest)) / "chosen.pt"
    return torch.load(path, weights_only=True)["model"]


def furthest(ours, theirs):
    """Return the largest difference, relative to the largest weight of its tensor where that is not tiny."""
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    return max(float((ours[name] - value).abs().max() / (value.abs().max() + 1e-2)) for name, value in theirs.items())


CASES = {
    "plain": (2, PLAIN),
    "batch-of-5": (2, PLAIN | {"train.batch_size": 5}),
    "three": (3, PLAIN),
    "clip": (2, PLAIN | {"train.clip_norm": 0.1}),
    "dropout": (2, {"train.accumulation": 2}),
    "dropout-3-parts": (3, {"train.accumulation": 3, "train.batch_size": 7}),
    "fixed-cls": (2, PLAIN | {"train.padding": "fixed", "model.pooling": "cls"}),
    "last": (2, PLAIN | {"train.selection": "last"}),
}


def compare(data, folder, size, settings, variant="full", team=Team):
    """Run a cell alone and shared; return the distance of the final weights, after a look at all other numbers."""
    config = tiny(variant, **TELLING | settings)
    alone = execute(config, data, Store(folder / "alone"))
    shared = folder / "shared"
    ours, *others = together(share_cell(config, data, shared, evaluation_tokens=64), shared, size, team)
    assert others == ["ok"] * (size - 1), (ours, others)
    for split in ("validation", "test"):
        mine, theirs = getattr(ours, split), getattr(alone.outcome, split)
        assert mine.total == theirs.total
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    curves = [Store(root).arrays(alone.run_id)["curve.train_loss"] for root in (shared, folder / "alone")]
    assert len(curves[0]) == 2
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    return furthest(chosen(shared, config, data), chosen(folder / "alone", config, data))


@pytest.mark.parametrize("case", CASES)
def test_several_processes_compute_what_one_does(data, tmp_path, case):
    assert compare(data, tmp_path, *CASES[case]) < 1e-5


@pytest.mark.parametrize("variant", ["contextpool", "adaptive_span", "performer", "mega"])
def test_so_do_variants_with_penalties_and_states_of_their_own(data, tmp_path, variant):
    assert compare(data, tmp_path, 2, PLAIN, variant) < 1e-5


class Summed(Team):
    """Broken: gradients count once for every process."""

    def sum_gradients(self, model):
        super().sum_gradients(model)
        for parameter in model.parameters():
            parameter.grad *= self.size


class SameHalf(Team):
    """Broken: all read the first part, and count it for the others."""

    def deal(self, items):
        return itertools.islice(enumerate(items), 0, None, self.size)


class Unweighted(Team):
    """Broken: a process counts as much as any other, however few examples it has."""

    factor = 1.0

    def deal(self, items):
        parts = list(items)
        for number, part in super().deal(parts):
            Unweighted.factor = sum(len(other.labels) for other in parts) / len(parts) / len(part.labels)
            yield number, part

    def sum_gradients(self, model):
        for parameter in model.parameters():
            parameter.grad *= self.factor
        super().sum_gradients(model)


class Apart(Team):
    """Broken: each keeps its own gradients."""

    def sum_gradients(self, model):
        pass


@pytest.mark.parametrize(
    ("team", "settings"),
    [(Summed, PLAIN), (SameHalf, PLAIN), (Unweighted, PLAIN | {"train.batch_size": 5})],
)
def test_a_broken_team_is_told_apart(data, tmp_path, team, settings):
    with pytest.raises(AssertionError):
        assert compare(data, tmp_path, 2, settings, team=team) < 1e-5


def test_processes_that_drift_apart_stop(data, tmp_path):
    broken = "RuntimeError: the 2 processes do not hold the same weights after step 3"
    told = together(share_cell(tiny(), data, tmp_path), tmp_path, team=Apart)
    assert [broken in answer for answer in told] == [True, True]


def test_a_stop_of_one_process_stops_all_and_the_run_goes_on_to_the_same_bits(data, tmp_path):
    config = tiny(**{"train.accumulation": 2})
    unbroken, _ = together(share_cell(config, data, tmp_path / "unbroken"), tmp_path / "unbroken")
    for step, stopped in ((1, 1), (2, 0), (4, 1)):
        folder, looks = tmp_path / str(step), itertools.count(1)
        stop = lambda rank, looks=looks, step=step, stopped=stopped: next(looks) >= step and rank == stopped  # noqa: E731
        answers = together(share_cell(config, data, folder, stop), folder)
        assert all(f"PreemptedRunError: stopped after step {step} with the state saved" in told for told in answers)
        assert not outcomes(Store(folder))
        assert together(share_cell(config, data, folder), folder) == [unbroken, "ok"]
        assert Store(folder).find(config.run_id(data.digest)).cost.resumed == 1
    assert together(share_cell(config, data, tmp_path / "4"), tmp_path / "4") == [unbroken, "ok"]  # nothing to do


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_process_ends_all_and_the_run_goes_on_to_the_same_bits(data, tmp_path, victim):
    config = tiny()
    unbroken, _ = together(share_cell(config, data, tmp_path / "unbroken"), tmp_path / "unbroken")
    looks = itertools.count(1)

    def die(rank):
        if rank == victim and next(looks) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    answers = together(share_cell(config, data, tmp_path, die, checkpoint_seconds=0.0), tmp_path)
    assert answers[victim] == "died"
    assert answers[1 - victim] == LOST
    assert together(share_cell(config, data, tmp_path), tmp_path) == [unbroken, "ok"]
    assert Store(tmp_path).find(config.run_id(data.digest)).cost.resumed == 1


def test_an_error_in_a_process_that_follows_is_noted(data, tmp_path):
    def run_out(rank):
        if rank == 1:
            raise MemoryError
        return False

    answers = together(share_cell(tiny(), data, tmp_path, run_out), tmp_path)
    assert answers == [
        "LostProcessError: another process of this run has ended",
        "RunError: out of memory: MemoryError",
    ]
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("attempts/*/*.json")]
    assert [(note["status"], note["environment"]["processes"]) for note in notes] == [("oom", 2)]


def test_divergence_ends_all(data, tmp_path):
    config = tiny(**{"train.lr": 1e30, "train.warmup_steps": 0})
    assert together(share_cell(config, data, tmp_path), tmp_path) == [None, "diverged"]
    assert Store(tmp_path).find(config.run_id(data.digest)).status == "diverged"


def test_alone_nothing_is_changed():
    sums = torch.tensor([1.0, 2.0])
    assert (ALONE.parts(3), list(ALONE.deal("ab"))) == (3, [(0, "a"), (1, "b")])
    assert (ALONE.collect(sums), sums.tolist()) == ([1.0, 2.0], [1.0, 2.0])
    assert (ALONE.any(True, False), ALONE.earliest(-1), ALONE.hand_out(b"x")) == ([True, False], -1, b"x")


def test_parts_are_as_many_for_all_and_each_is_dealt_once():
    for size, accumulation in itertools.product(range(1, 5), range(1, 9)):
        count = Team(0, size).parts(accumulation)
        assert count >= accumulation
        assert count % size == 0
        dealt = [number for rank in range(size) for number, _ in Team(rank, size).deal(range(count))]
        assert sorted(dealt) == list(range(count))


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="torchrun shares one cell among 2 processes, these are 3 cells"):
        check_team([tiny()] * 3, 2)
    with pytest.raises(UsageError, match="a batch of 4 cannot be shared by 5 processes; --nproc-per-node 4"):
        check_team([tiny()], 5)
    with pytest.raises(UsageError, match="write --device cuda"):
        own_device(torch.device("cuda:0"), Place(0, 2, 0))
    with pytest.raises(UsageError, match="process 99 has no GPU"):
        own_device(torch.device("cuda"), Place(99, 100, 99))
    assert own_device(torch.device("cpu"), Place(1, 2, 1)) == torch.device("cpu")
    assert place({"RANK": "1", "WORLD_SIZE": "2"}) == Place()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def lra_run(home, store, *more, attn="full"):
    return [
        *TORCHRUN, "-m", "runners.cli.run", "--attn", attn, "--task", "listops", "--profile", "quick",
        "--track", "open", "--data-dir", str(home), "--store", str(store), "--device", "cpu", "--threads", "1",
        *(f"--set={key}={value}" for key, value in more),
    ]  # fmt: skip


def test_torchrun_shares_a_cell(tmp_path):
    settings = {key: "null" if value is None else value for key, value in (TINY | PLAIN | TELLING).items()}
    command = lra_run(tmp_path / "home", tmp_path / "shared", *settings.items())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy %") == 1
    (record,) = Store(tmp_path / "shared").records()
    data = tiny_data(tmp_path / "home")
    alone = execute(record.config, data, Store(tmp_path / "alone"))
    assert (record.run_id, record.environment["processes"]) == (alone.run_id, 2)
    assert record.outcome.test.correct == alone.outcome.test.correct
    weights = [chosen(tmp_path / name, record.config, data) for name in ("shared", "alone")]
    assert furthest(*weights) < 1e-5


LEAVING = """
import os, sys, torch
from pathlib import Path
from runners.train.distributed import Team, join, leave, place
here = place()
if sys.argv[1] == "join":
    team = join(here, torch.device("cpu"))
else:
    torch.distributed.init_process_group("gloo")
    team = Team(here.rank, here.size)
from torch.distributed.nn import functional  # as an optimizer does, in the middle of a run
team.meet()
leave(team)
names = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
print(sum("gloo" in name for name in names))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads in /proc")
@pytest.mark.parametrize("how", ["join", "broken twin"])
def test_no_thread_of_gloo_is_left(how, tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = [*TORCHRUN, str(tmp_path / "leaving.py"), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
    left = [int(count) for count in done.stdout.split()]
    assert len(left) == 2, done.stdout
    assert all(count == 0 for count in left) if how == "join" else min(left) > 0


def test_torchrun_that_is_terminated_leaves_a_saved_state(tmp_path):
    settings = TINY | {"train.steps": 100_000, "train.eval_every": 100_000}
    command = [*lra_run(tmp_path / "home", tmp_path, *settings.items()), "--checkpoint-seconds", "0.2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/*/step-*.pt")) and time.monotonic() < limit:
        time.sleep(0.01)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert stderr.count("with the state saved; run the same command again to continue") == 1, stderr
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("attempts/*/*.json")]
    assert [(note["status"], note["environment"]["processes"]) for note in notes] == [("preempted", 2)]


def test_several_cells_under_torchrun_are_one_line(tmp_path):
    command = ["-m", "runners.cli.run", "--attn", "full,local", "--task", "listops", "--store", str(tmp_path)]
    said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | said, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "Error: torchrun shares one cell among 2 processes, these are 2 cells: name one" in done.stderr
    assert "Traceback" not in done.stderr
