"""Shared by all tests: one thread per worker, a seed, no search for garbage that stays, and no wait for the disk."""

import gc
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; two workers share two cores

import pytest
from click.testing import CliRunner
from xdist import is_xdist_controller

gc.disable()  # until all is imported and collected


def pytest_collection(session):
    """Import torch, before a test does, but not in the process that only hands tests to workers, which wait for it."""
    if is_xdist_controller(session):
        return
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported; its kernels are tested under its interpreter


@pytest.fixture(autouse=True)
def seeded():
    """Seed what a test draws without a generator of its own, whatever ran before it in this process."""
    import torch

    torch.default_generator.manual_seed(0)  # `torch.manual_seed` takes 4 ms under pytest
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def refused_nothing():
    """Forget which programs were refused: each test stands for a process of its own."""
    yield
    from attention_zoo import program  # after the settings above

    program._refused.clear()


@pytest.fixture(scope="session", autouse=True)
def counted_once():
    """Count the cost of a configuration once in a process: its seeds share it, and it is a third of a tiny run.

    A test of the counting itself imports the functions by name, and so has them as they are.
    """

    def remembering(count):
        known = {}

        def counted(config, *rest):
            key = (config.model_copy(update={"seed": 0}).model_dump_json(), repr(rest))
            if key not in known:
                known[key] = count(config, *rest)
            return known[key]

        return counted

    from runners.train import cost  # after the settings above

    with pytest.MonkeyPatch.context() as patch:
        for name in ("flops_of_example", "parameters_with_full"):
            patch.setattr(cost, name, remembering(getattr(cost, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def flushed_by_nobody():
    """Leave out the wait for the disk: no test cuts the power, and a process that is killed loses nothing written.

    Tests of the flushing put a function of their own here. Processes that a test starts flush as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def home(tmp_path):
    """The folder of the data that a test prepares."""
    return tmp_path / "home"


@pytest.fixture
def closed_to_us(monkeypatch):
    """Refuse the opening of a file, as of another user's; the tests may run as root, whom no mode refuses it."""
    opens = Path.open

    def close(path):
        def refuse(self, *arguments, **options):
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return opens(self, *arguments, **options)

        monkeypatch.setattr(Path, "open", refuse)

    return close


@pytest.fixture
def lra_data(home):
    """Run `lra-data` with that folder."""

    from runners.cli.data import main

    def invoke(*arguments, **settings):
        return CliRunner().invoke(main, list(map(str, arguments)), env={"LRA_HOME": str(home)}, **settings)

    return invoke


def pytest_collection_finish():
    gc.freeze()  # all modules and tests, through which each full collection would go otherwise
    gc.enable()


def pytest_collection_modifyitems(items):
    """Without a CUDA device, keep one case of each test that needs one, skipped with the reason."""
    import torch

    if torch.cuda.is_available():
        return
    kept, told = [], set()
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
            function = item.nodeid.partition("[")[0]
            if function in told:
                continue
            told.add(function)
        kept.append(item)
    items[:] = kept
