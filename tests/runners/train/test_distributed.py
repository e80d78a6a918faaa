"""One run over several processes: it computes what one process does, stops as one, and goes on to the same bits."""

import gc
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from attention_zoo import Traits, register_variant, registry
from attention_zoo.variants.full import FullAttention, FullConfig
from lra.data.batching import Batch
from lra.errors import LraError, UsageError
from lra.results.records import Store
from runners.train import loop, run
from runners.train.distributed import (
    SINGLE,
    LostProcessError,
    RankInfo,
    Replica,
    all_equal,
    all_reduce,
    all_reduce_or,
    broadcast,
    communication,
    local_device,
    rank_info,
)
from runners.train.plan import check_shareable
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The store of the runs in a single process; one that is there is not run again."""
    return tmp_path_factory.mktemp("alone")


def together(action, folder, size=2):
    """Run `action(ranks)` in forked processes that are connected; return what each gave, errors as their text."""
    answers = [CONTEXT.Pipe(duplex=False) for _ in range(size)]

    def child(rank):
        gc.freeze()  # what the parent holds, through which the collections of a run would go otherwise
        store = dist.FileStore(str(folder / "rendezvous"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        try:
            answer = action(RankInfo(rank, size, rank))
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
    messages = []
    for receiver, _ in answers:
        try:
            messages.append(receiver.recv())
        except EOFError:
            messages.append("died")
    for process in processes:
        process.join()
    return messages


def share_run(config, data, folder, stop=lambda rank: False, **settings):
    """Return the action of a process: its part of a run. It returns the outcome that is in the record."""

    def action(ranks):
        return execute(config, data, Store(folder), lambda: stop(ranks.rank), ranks=ranks, **settings).outcome

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
    "uneven-parts": (2, PLAIN | {"train.batch_size": 10, "train.accumulation": 4}),
    "fewer-examples-than-parts": (2, PLAIN | {"train.accumulation": 16}),
    "three": (3, PLAIN | {"train.batch_size": 6}),
    "clip": (2, PLAIN | {"train.clip_norm": 0.1}),
    "dropout": (2, {"train.accumulation": 2}),
    "dropout-3-parts": (3, {"train.accumulation": 3, "train.batch_size": 9}),
    "dropout-4-parts": (2, {"train.accumulation": 4, "train.batch_size": 8}),
    "fixed-cls": (2, PLAIN | {"train.padding": "fixed", "model.pooling": "cls"}),
    "last": (2, PLAIN | {"train.selection": "last"}),
}


def compare(data, folder, alone, size, settings, variant="full"):
    """Run a configuration alone and shared; return the distance of the weights, after a look at all other numbers."""
    config = tiny(variant, **TELLING | settings)
    single = execute(config, data, Store(alone))
    ours, *others = together(share_run(config, data, folder, evaluation_tokens=64), folder, size)
    assert others == [ours] * (size - 1), (ours, others)
    for split in ("validation", "test"):
        mine, theirs = getattr(ours, split), getattr(single.outcome, split)
        assert mine.total == theirs.total
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    curves = [Store(root).arrays(single.run_id)["curve.train_loss"] for root in (folder, alone)]
    assert len(curves[0]) == 2
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    return furthest(chosen(folder, config, data), chosen(alone, config, data))


NIGHTLY = ("plain", "fewer-examples-than-parts", "clip", "dropout-3-parts", "dropout-4-parts", "fixed-cls", "last")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.nightly if case in NIGHTLY else ()) for case in CASES]
)
def test_several_processes_compute_what_one_does(data, tmp_path, alone, case):
    assert compare(data, tmp_path, alone, *CASES[case]) < 1e-5


@pytest.mark.parametrize(
    "variant",
    ["adaptive_span", *(pytest.param(v, marks=pytest.mark.nightly) for v in ("contextpool", "performer", "mega"))],
)
def test_so_do_variants_with_penalties_and_states_of_their_own(data, tmp_path, alone, variant):
    assert compare(data, tmp_path, alone, 2, PLAIN, variant) < 1e-5


class Odd(FullAttention):
    """Full attention with a parameter that only its penalty uses, and one that nothing uses."""

    def __init__(self, config: FullConfig, dims) -> None:
        super().__init__(config, dims)
        self.only_in_penalty = torch.nn.Parameter(torch.ones(()))
        self.unused = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, mask=None):
        return super().forward(x, mask)

    def auxiliary_loss(self):
        return (self.only_in_penalty - 3.0) ** 2


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.nightly), 4])
def test_so_does_a_variant_with_parameters_outside_its_forward_pass(data, tmp_path, alone, monkeypatch, accumulation):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_variant("odd", traits=Traits(memory="linear", complexity="O(n^2)"), paper="none")(Odd)
    settings = PLAIN | {"train.accumulation": accumulation, "train.weight_decay": 0.1}
    assert compare(data, tmp_path, alone, 2, settings, "odd") < 1e-5
    weights = chosen(tmp_path, tiny("odd", **TELLING | settings), data)
    assert weights["blocks.0.mixer.unused"] == 1.0  # not even decayed
    assert weights["blocks.0.mixer.only_in_penalty"] > 1.05


class Summed(Replica):
    """Broken: gradients are added up and not averaged."""

    def __init__(self, model, mixers):
        super().__init__(model, mixers)
        self.register_comm_hook(None, self.add_up)

    @staticmethod
    def add_up(_state, bucket):
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


class Apart(Replica):
    """Broken: each process keeps its own gradients."""

    def __init__(self, model, mixers):
        super().__init__(model, mixers)
        self.register_comm_hook(None, self.keep)

    @staticmethod
    def keep(_state, bucket):
        kept = torch.futures.Future()
        kept.set_result(bucket.buffer())
        return kept


def break_it(monkeypatch, how):
    """Break the exchange between the processes in one way."""
    if how == "gradients are added up":
        monkeypatch.setattr(run, "Replica", Summed)
    elif how == "all read the first shard":
        shard = Batch.shard
        monkeypatch.setattr(Batch, "shard", lambda batch, rank, size: shard(batch, 0, size))
    elif how == "all drop out the same":
        seed_all = loop.seed_all
        monkeypatch.setattr(loop, "seed_all", lambda seed, *name: seed_all(seed, *name[:2], 0))
    elif how == "gradients of the last part only":
        monkeypatch.setattr(Replica, "forward", forget_earlier_parts(Replica.forward))


def forget_earlier_parts(forward):
    def forgetful(self, tokens, mask):
        self.zero_grad()
        return forward(self, tokens, mask)

    return forgetful


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("gradients are added up", PLAIN),
        pytest.param("all read the first shard", PLAIN, marks=pytest.mark.nightly),
        pytest.param("all drop out the same", {"train.accumulation": 2}, marks=pytest.mark.nightly),
        ("gradients of the last part only", PLAIN | {"train.accumulation": 4}),
    ],
)
def test_a_broken_exchange_is_told_apart(data, tmp_path, alone, monkeypatch, how, settings):
    config = tiny(**TELLING | settings)
    execute(config, data, Store(alone))
    break_it(monkeypatch, how)
    together(share_run(config, data, tmp_path), tmp_path)
    assert furthest(chosen(tmp_path, config, data), chosen(alone, config, data)) > 1e-4


def test_processes_that_drift_apart_stop(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Replica", Apart)
    broken = "RuntimeError: the 2 processes do not hold the same weights after step 3"
    messages = together(share_run(tiny(), data, tmp_path), tmp_path)
    assert [broken in message for message in messages] == [True, True]


@pytest.mark.nightly
def test_a_stop_of_one_process_stops_all_and_the_run_goes_on_to_the_same_bits(data, tmp_path):
    config = tiny(**{"train.accumulation": 2})
    unbroken, _ = together(share_run(config, data, tmp_path / "unbroken"), tmp_path / "unbroken")
    for step, stopped in ((1, 1), (2, 0), (4, 1)):
        folder, looks = tmp_path / str(step), itertools.count(1)
        stop = lambda rank, looks=looks, step=step, stopped=stopped: next(looks) >= step and rank == stopped  # noqa: E731
        answers = together(share_run(config, data, folder, stop), folder)
        assert all(
            f"PreemptedRunError: stopped after step {step} with the state saved" in message for message in answers
        )
        assert not outcomes(Store(folder))
        assert together(share_run(config, data, folder), folder) == [unbroken, unbroken]
        assert Store(folder).find(config.run_id(data.digest)).cost.resumed == 1
    assert together(share_run(config, data, tmp_path / "4"), tmp_path / "4") == [unbroken, unbroken]  # nothing to do


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_the_death_of_one_process_ends_all_and_the_run_goes_on_to_the_same_bits(data, tmp_path, victim):
    config = tiny()
    unbroken, _ = together(share_run(config, data, tmp_path / "unbroken"), tmp_path / "unbroken")
    looks = itertools.count(1)

    def die(rank):
        if rank == victim and next(looks) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    answers = together(share_run(config, data, tmp_path, die, checkpoint_seconds=0.0), tmp_path)
    assert answers[victim] == "died"
    assert answers[1 - victim] == LOST
    assert together(share_run(config, data, tmp_path), tmp_path) == [unbroken, unbroken]
    assert Store(tmp_path).find(config.run_id(data.digest)).cost.resumed == 1


def test_an_error_in_a_process_that_is_not_the_main_one_is_logged(data, tmp_path):
    def run_out(rank):
        if rank == 1:
            raise MemoryError
        return False

    answers = together(share_run(tiny(), data, tmp_path, run_out), tmp_path)
    assert answers == [
        "LostProcessError: another process of this run has ended",
        "RunError: out of memory: MemoryError",
    ]
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("attempts/*/*.json")]
    assert [(note["status"], note["environment"]["processes"]) for note in notes] == [("oom", 2)]


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (dist.DistNetworkError("Connection reset"), True),
        (dist.DistBackendError("NCCL error\nncclRemoteError: .. a remote process exiting prematurely."), True),
        (dist.DistBackendError("NCCL error\nLast error:\nNet : Connection closed by remote peer"), True),
        (dist.DistBackendError("NCCL error, invalid usage\nLast error:\nDuplicate GPU detected"), False),
        (dist.DistBackendError("NCCL error\nncclUnhandledCudaError: .. Cuda failure 'out of memory'"), False),
        (torch.OutOfMemoryError("CUDA out of memory, in a call below gloo"), False),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_only_the_end_of_another_process_is_called_that(error, is_lost):
    with pytest.raises(LostProcessError if is_lost else type(error)) as caught, communication():
        raise error
    assert is_lost or caught.value is error


def test_divergence_ends_all(data, tmp_path):
    config = tiny(**{"train.lr": 1e30, "train.warmup_steps": 0})
    assert together(share_run(config, data, tmp_path), tmp_path) == [None, None]
    assert Store(tmp_path).find(config.run_id(data.digest)).status == "diverged"


def test_a_single_process_does_not_communicate(data, tmp_path, monkeypatch):
    for name in ("all_reduce", "broadcast_object_list", "all_gather_object", "init_process_group", "barrier"):
        monkeypatch.setattr(dist, name, None)
    monkeypatch.setattr(run, "Replica", None)
    assert execute(tiny(), data, Store(tmp_path)).status == "ok"
    sums = torch.tensor([1.0, 2.0])
    assert all_reduce(sums, SINGLE) is sums
    assert (all_reduce_or([True, False], SINGLE), all_equal("x", SINGLE)) == ([True, False], True)
    assert broadcast(b"x", SINGLE) == b"x"


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_each_example_is_in_one_shard(size):
    batch = Batch(tokens=torch.arange(24).view(12, 2), mask=None, labels=torch.arange(12), lengths=np.arange(12))
    shards = [batch.shard(rank, size) for rank in range(size)]
    assert torch.cat([shard.labels for shard in shards]).tolist() == list(range(12))
    assert torch.cat([shard.tokens for shard in shards]).flatten().tolist() == list(range(24))
    assert [len(shard.lengths) for shard in shards] == [12 // size] * size


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="torchrun shares one run among 2 processes, these are 3 runs"):
        check_shareable([tiny()] * 3, 2)
    for size in (3, 5, 8):
        with pytest.raises(UsageError, match=f"a batch of 4 cannot be shared equally by {size} .* one of 1, 2, 4"):
            check_shareable([tiny()], size)
    for size in (1, 2, 4):
        check_shareable([tiny()], size)
    check_shareable([tiny()] * 3, 1)
    with pytest.raises(UsageError, match="write --device cuda"):
        local_device(torch.device("cuda:0"), RankInfo(0, 2, 0))
    with pytest.raises(UsageError, match="process 99 has no GPU"):
        local_device(torch.device("cuda"), RankInfo(99, 100, 99))
    assert local_device(torch.device("cpu"), RankInfo(1, 2, 1)) == torch.device("cpu")
    assert rank_info({"RANK": "1", "WORLD_SIZE": "2"}) == SINGLE


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def lra_run(home, store, *more, attn="full"):
    return [
        *TORCHRUN, "-m", "runners.cli.run", "--attn", attn, "--task", "listops", "--profile", "quick",
        "--track", "open", "--data-dir", str(home), "--store", str(store), "--device", "cpu", "--threads", "1",
        *(f"--set={key}={value}" for key, value in more),
    ]  # fmt: skip


@pytest.mark.nightly
def test_torchrun_shares_a_run(tmp_path):
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
from runners.train.distributed import Replica, barrier, destroy, init, rank_info
ranks = rank_info()
if sys.argv[1] == "init":
    init(ranks, torch.device("cpu"))
else:
    torch.distributed.init_process_group("gloo")
class Model(torch.nn.Linear):
    def forward(self, tokens, mask):
        return super().forward(tokens)
def step():
    network = Replica(Model(2, 2), [])
    network.__dict__["itself"] = network  # a cycle, as the frames of an exception make one
    network(torch.ones(1, 2), None).sum().backward()
step()
from torch.distributed.nn import functional  # as an optimizer does, in the middle of a run
barrier(ranks)
destroy(ranks)
names = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
os.write(1, b"%d\\n" % sum("gloo" in name for name in names))  # at once: two processes write
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads in /proc")
@pytest.mark.nightly
@pytest.mark.parametrize("how", ["init", "broken twin"])
def test_no_thread_of_gloo_is_left(how, tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = [*TORCHRUN, str(tmp_path / "leaving.py"), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
    left = [int(count) for count in done.stdout.split()]
    assert len(left) == 2, done.stdout
    assert all(count == 0 for count in left) if how == "init" else min(left) > 0


@pytest.mark.nightly
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


@pytest.mark.nightly
def test_several_runs_under_torchrun_are_one_line(tmp_path):
    command = ["-m", "runners.cli.run", "--attn", "full,local", "--task", "listops", "--store", str(tmp_path)]
    said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | said, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "Error: torchrun shares one run among 2 processes, these are 2 runs: name one" in done.stderr
    assert "Traceback" not in done.stderr
