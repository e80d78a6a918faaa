"""Compiled steps: one graph for each length, or an error."""

import functools
import os
import signal
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attention_zoo import available
from attention_zoo.variants.full import FullAttention
from lra.config.profiles import load_profile
from lra.data.batching import MOST_LENGTHS, TrainingBatches
from lra.errors import UsageError
from lra.models.transformer import build_model, mixers
from lra.results.records import Store
from lra.tasks import get_task
from runners import signals
from runners.bench.workload import Workload, workload_config
from runners.train import run as run_module
from runners.train.compiled import MOST_GRAPHS, compile_model, is_of_compiler, uncompiled
from runners.train.run import PreemptedRunError, RunError
from tests.lra.data.test_batching import make_split
from tests.runners.tiny_runs import execute, tiny, tiny_data

CPU = torch.device("cpu")
COMPILED = {"train.compile": True, "model.attention_dropout": 0.0}
OF_BLOCKS = ("bigbird", "block_topk", "h_transformer_1d", "longformer", "mra", "reformer", "sparse", "transformer_ls")
SEVERAL_GRAPHS = dict.fromkeys(OF_BLOCKS, "block_sparse_attention")
"""Variants that are not one graph, each with the function that stays outside: its loop would be unrolled."""


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def _only_captured(monkeypatch):
    """Let runs capture graphs and run them as they are: making code of them takes long."""
    monkeypatch.setattr(run_module, "compile_model", functools.partial(compile_model, backend="eager"))


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class Tiny(nn.Module):
    """Adds up what is real."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 2)

    def forward(self, tokens, mask):
        return (self.table(tokens.long()) * mask.unsqueeze(-1)).sum(dim=1)


def test_200_batches_need_a_graph_for_each_length_at_most():
    split = make_split(np.random.default_rng(0).integers(5, 2000, 900))
    stream = TrainingBatches(split, batch_size=4, seed=0, padded_length=None, limit=2048, coarse=True)
    model = Tiny()
    compile_model(model, backend="eager")
    before, sizes = graphs(), set()
    for step in range(200):
        batch = stream.batch(step, CPU)
        sizes.add(batch.tokens.shape)
        model(batch.tokens, batch.mask)
    assert MOST_LENGTHS / 2 < graphs() - before == len(sizes) <= MOST_LENGTHS


def test_a_process_in_which_torch_compiles_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(UsageError, match="compile: torch does not compile all steps in this process"):
        compile_model(Tiny())


def test_steps_that_are_handed_to_another_backend_are_refused(monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_OVERRIDE_BACKENDS", ">0:eager")
    with pytest.raises(UsageError, match="compile: torch does not compile all steps in this process"):
        compile_model(Tiny())


def test_code_for_other_instructions_than_those_of_torch_is_refused(monkeypatch):
    """The compiler takes any failure of its trial, such as by a signal, for a processor without them."""
    from torch._inductor import config, cpu_vec_isa

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with config.patch({"cpp.simdlen": None}):
        for isa in (cpu_vec_isa.invalid_vec_isa, cpu_vec_isa.VecAVX512()):
            monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda isa=isa: isa)
            with pytest.raises(UsageError, match=r"the C\+\+ compiler made no code for AVX2 of this processor"):
                compile_model(Tiny())
        assert config.cpp.simdlen is None
        monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", cpu_vec_isa.VecAVX2)
        compile_model(Tiny())
        assert config.cpp.simdlen == 256  # in the keys of the compiler's cache


@pytest.mark.usefixtures("_only_captured")
def test_a_stop_while_the_compiler_is_tried_ends_the_run_before_it_compiles(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "fix_instructions", lambda: os.kill(os.getpid(), signal.SIGTERM))
    signals.install()
    try:
        with pytest.raises(signals.StoppedError):
            execute(tiny(**COMPILED), data, Store(tmp_path))
    finally:
        signals._requested.clear()
        signals.uninstall()


def test_ctrl_c_that_ends_the_c_compiler_is_no_fault_of_the_variant(data, tmp_path, monkeypatch):
    from torch._inductor.exc import CppCompileError

    def broken(*_):
        raise CppCompileError(["g++"], "killed")

    monkeypatch.setattr(run_module, "train", broken)
    with pytest.raises(RunError, match="full cannot be compiled as one graph"):
        execute(tiny(), data, Store(tmp_path))
    monkeypatch.setattr(signals, "_requested", [signal.SIGINT])
    with pytest.raises(
        PreemptedRunError, match=r"stopped while steps were compiled.*remove .*; run the same command again"
    ):
        execute(tiny(), data, Store(tmp_path))


@pytest.mark.nightly
def test_too_many_sizes_are_an_error_and_not_slow_steps():
    model = Tiny()
    compile_model(model, backend="eager")

    def call(length):
        model(torch.ones(1, length, dtype=torch.uint8), torch.ones(1, length, dtype=torch.bool))

    for length in range(1, MOST_GRAPHS + 1):
        call(length)
    with pytest.raises(Exception, match="fullgraph") as caught:
        call(MOST_GRAPHS + 1)
    assert is_of_compiler(caught.value)
    assert not is_of_compiler(ValueError())
    before = graphs()
    with uncompiled(compiled=True):
        call(1000)
    assert graphs() == before


@pytest.mark.usefixtures("_only_captured")
def test_a_stopped_run_of_compiled_steps_ends_with_the_same_bits(data, tmp_path):
    config = tiny(**COMPILED)
    assert config.train.padding == "coarse"
    whole = execute(config, data, Store(tmp_path / "whole"))
    looks = iter([False] * 4 + [True])
    with pytest.raises(PreemptedRunError):
        execute(config, data, Store(tmp_path / "stopped"), lambda: next(looks))
    torch.compiler.reset()  # as in a new process
    resumed = execute(config, data, Store(tmp_path / "stopped"))
    assert (resumed.cost.resumed, resumed.outcome) == (1, whole.outcome)


@pytest.mark.usefixtures("_only_captured")
def test_compiled_steps_on_a_cpu_take_deterministic_algorithms(data, tmp_path):
    """The compiler's own code adds gradients of an embedding in the order in which its threads come."""
    for config, taken in ((tiny(**COMPILED), True), (tiny(), False)):
        record = execute(config, data, Store(tmp_path))
        assert record.environment["deterministic_algorithms"] is taken
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("_only_captured")
def test_an_operator_without_a_fixed_order_is_told_of_compiling(data, tmp_path, monkeypatch):
    """Nobody has asked for --deterministic."""

    def unordered(self):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))

    monkeypatch.setattr(FullAttention, "after_step", unordered)
    with pytest.raises(RunError, match=r"--compile: full uses put_, .* on cpu; run it without --compile"):
        execute(tiny(**COMPILED), data, Store(tmp_path))


def test_a_measured_step_is_compiled_like_a_step_of_a_run():
    taken = []
    for compiled in (True, False):
        config = workload_config(
            task="listops", variant="full", profile=load_profile("quick"), length=16, batch_size=2,
            overrides={"train.compile": compiled},
        )  # fmt: skip
        with patch("runners.bench.workload.compile_model"):
            work = Workload(config, CPU)
        look = work.layers[0].register_forward_hook
        look(lambda *_: taken.append(torch.are_deterministic_algorithms_enabled()))
        work.step()
    assert taken == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_several_threads_repeat_the_bits_of_compiled_steps(data, tmp_path):
    config = tiny(**COMPILED | {"model.dim": 64, "model.mlp_dim": 128, "train.batch_size": 32})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = {execute(config, data, Store(tmp_path / str(time))).outcome.weights_digest for time in range(4)}
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.usefixtures("_only_captured")
def test_a_variant_that_is_not_one_graph_is_named(data, tmp_path, monkeypatch):
    forward = FullAttention.forward

    def reading(self, x, mask=None):
        return forward(self, x, mask) * (2.0 if float(x.sum()) > 0 else 1.0)

    monkeypatch.setattr(FullAttention, "forward", reading)
    with pytest.raises(RunError, match=r"train.compile: full cannot be compiled as one graph: .+"):
        execute(tiny(**COMPILED), data, Store(tmp_path))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of the compiler, about what it looks at
@pytest.mark.parametrize("name", sorted(available()))
def test_a_training_step_of_every_variant_is_one_graph(name):
    # Attention dropout of a CPU is drawn block by block, in a loop that is no graph either.
    config, info = tiny(name, **{"model.attention_dropout": 0.0}), get_task("listops").info
    model = build_model(config, info.vocab_size, info.num_classes).train()
    compile_model(model, backend="eager")
    before, length = graphs(), config.model.max_length
    tokens, mask = torch.ones(3, length, dtype=torch.uint8), torch.ones(3, length, dtype=torch.bool)
    mask[:, length // 2 :] = False

    def step():
        terms = [F.cross_entropy(model(tokens, mask), torch.zeros(3, dtype=torch.int64))]
        terms += [term for mixer in mixers(model) if (term := mixer.auxiliary_loss()) is not None]
        sum(terms).backward()
        for mixer in mixers(model):
            mixer.after_step()

    if name in SEVERAL_GRAPHS:
        with pytest.raises(Exception, match=SEVERAL_GRAPHS[name]) as caught:
            step()
        assert is_of_compiler(caught.value)
        return
    for _ in range(3):
        step()
    assert graphs() == before + 1
