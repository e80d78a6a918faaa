"""Tiny runs for tests of sweeps and faults, and a launcher that forks instead of starting Python anew."""

import faulthandler
import os
import time
from pathlib import Path

import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.data.dataset import PreparedData, write_prepared
from lra.errors import LraError
from lra.results.records import Store
from lra.tasks import get_task
from runners.sweep.driver import Sweep, SweepSettings
from runners.sweep.launchers.base import JobResult, Launcher
from runners.sweep.progress import SweepView
from runners.sweep.state import SweepRun, state_of
from runners.train.run import RunOptions, run

TINY = {
    "data.train": 64, "data.validation": 16, "data.test": 16, "data.min_length": 4, "data.max_length": 16,
    "data.max_depth": 3, "data.max_args": 3,
    "model.dim": 8, "model.num_layers": 1, "model.num_heads": 2, "model.mlp_dim": 8, "model.max_length": 16,
    "model.dropout": 0.1, "model.attention_dropout": 0.1,
    "train.batch_size": 4, "train.steps": 6, "train.eval_every": 3, "train.lr": 1e-2, "train.warmup_steps": 2,
}  # fmt: skip


def tiny(variant: str = "full", seed: int = 0, **overrides) -> RunConfig:
    return resolve(
        task="listops",
        variant=variant,
        profile=load_profile("quick"),
        seed=seed,
        track="open",
        overrides=TINY | overrides,
    )


def tiny_data(folder: Path) -> PreparedData:
    task = get_task("listops")
    return task.prepare(task.options.model_validate(tiny().data), folder, workers=1, progress=False)


def rewritten(data: PreparedData, folder: Path, splits) -> PreparedData:
    """Prepare the same data with other splits in a folder of its own, since a run reads what is in its folder."""
    manifest = data.manifest
    return write_prepared(
        folder,
        task=manifest.task,
        dataset=manifest.dataset,
        generated_by=manifest.generated_by,
        options=manifest.options,
        num_classes=10,
        splits=splits,
        baselines=manifest.baselines,
    )


def execute(config, data, store, stop=lambda: False, **settings):
    options = RunOptions(**{"device": torch.device("cpu"), "progress": False, "checkpoint_seconds": 1e9} | settings)
    return run(config, data, store, options, stop)


def sweep_run(config, data):
    return SweepRun(
        label=f"seed {config.seed}", config=config, run_id=config.run_id(data.digest), manifest=data.manifest
    )


def outcomes(store):
    return {record.run_id: (record.status, record.outcome) for record in store.records()}


def sweep(runs, store, launcher, stop=lambda: False, **settings):
    view = SweepView(store, runs, [state_of(store, run) for run in runs])
    return Sweep(runs, store, launcher, SweepSettings(arguments=(), **settings), view, stop).run()


class ForkLauncher(Launcher):
    """Runs each job in a forked child that first calls `sabotage(config)`; a minimal second launcher."""

    def __init__(self, data, store, sabotage=lambda config: None, slots=2):
        self.data, self.store, self.sabotage, self.slots = data, store, sabotage, slots
        self.children: dict[int, tuple] = {}
        self.started: list[str] = []

    def free_slots(self):
        return self.slots - len(self.children)

    def start(self, jobs):
        for job in jobs:
            self.started.append(job.key)
            pid = os.fork()
            if pid == 0:
                os._exit(self._child(job))
            self.children[pid] = (job, time.monotonic())

    def _child(self, job):
        try:
            config = RunConfig.model_validate_json(job.config)
            faulthandler.disable()  # a crash is wanted here, its stack is not
            self.sabotage(config)
            execute(config, self.data, Store(self.store.root))
        except LraError as error:
            return error.exit_code
        except BaseException:  # noqa: BLE001 - a forked child may not return into pytest
            return 70
        return 0

    def poll(self):
        ended = []
        for pid, (job, started) in list(self.children.items()):
            late = job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds
            if late:
                os.kill(pid, 9)
            done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if done:
                del self.children[pid]
                ended.append(JobResult(key=job.key, returncode=os.waitstatus_to_exitcode(status), timed_out=late))
        return ended

    def stop(self):
        for pid in self.children:
            os.kill(pid, 9)

    def close(self):
        while self.children:
            self.poll()
