"""Train every variant and model on the pretended device; print one line of JSON for each case.

python -m tests.pretended_cuda.cases small VARIANT ...    short inputs, with values, compared with the CPU
python -m tests.pretended_cuda.cases large VARIANT ...    4,000 tokens and batch 32, without values
python -m tests.pretended_cuda.cases models               the model of each task, and a run that is stopped and resumed
python -m tests.pretended_cuda.cases planted              faults that must be found
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention_zoo import available
from lra.config.profiles import load_profile, profile_names
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.data.ahead import CPU, BatchesAhead
from lra.data.batching import Batch
from lra.models import build_model, mixers
from lra.models.precision import autocast
from lra.results.records import RunRecord, Store
from lra.tasks import get_task
from runners.train.distributed import SINGLE
from runners.train.loop import Callbacks, PreemptedRunError, TrainState, phases_of, train
from runners.train.optimizer import build_optimizer
from tests.pretended_cuda.device import OnCuda, PretendedCuda, pretended_cuda
from tests.pretended_cuda.planted import MODULES, WIDTH, Right, SumsInNoOrder
from tests.runners.tiny_runs import execute, tiny, tiny_data

ROOT = Path(__file__).parents[2]
Job = tuple[str, Callable[[], dict]]
OPTIONS: dict[str, list[dict[str, object]]] = {
    "adaptive_span": [{}, {"span": "dynamic"}],
    "contextpool": [{}, {"backend": "pyramid"}, {"placement": "stream", "weights": "softmax", "normalized": False}],
    "lion": [{}, {"decay": "fixed"}],
    "mega": [{}, {"chunk": 16}],
    "multiscale_conv": [{}, {"kind": "dilated"}],
    "performer": [{}, {"kernel": "softmax", "redraw_interval": 1}],
    "reformer": [{"num_hashes": 2}],
    "sparse": [{}, {"pattern": "strided"}],
    "synthesizer": [{}, {"kind": "dense"}, {"kind": "random"}],
}
"""Options that take another way through the code; one run of the defaults for those that are not named."""
NOISY = {"sinkhorn"}
"""Variants that draw noise in training, which differs between devices."""


class EnoughError(Exception):
    """The steps that are looked at have been made."""


class FixedBatches:
    """One batch for every step, with lengths from full to 3 tokens."""

    def __init__(self, config: RunConfig, count: int, length: int) -> None:
        info = get_task(config.task).info
        draw = torch.Generator().manual_seed(0)
        shape = (count, 2, length) if info.paired else (count, length)
        self.tokens = torch.randint(1, min(info.vocab_size, 255), shape, generator=draw, dtype=torch.int16)
        self.labels = torch.arange(count) % info.num_classes
        self.lengths, self.mask = np.full(count, length), None
        if info.grid is None:
            self.lengths = np.linspace(length, 3, count).astype(int)
            mask = torch.arange(length) < torch.from_numpy(self.lengths)[:, None]
            self.mask = (mask[:, None] if info.paired else mask).expand(shape).contiguous()
            self.tokens *= self.mask

    def batch(self, step: int, device: torch.device) -> Batch:
        def there(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        mask = None if self.mask is None else there(self.mask)
        return Batch(tokens=there(self.tokens), mask=mask, labels=there(self.labels), lengths=self.lengths)


def configured(task: str, variant: str, profile: str = "quick", **overrides: object) -> RunConfig:
    return resolve(task=task, variant=variant, profile=load_profile(profile), seed=0, track="open", overrides=overrides)


def steps(
    config: RunConfig, batches: FixedBatches, device: torch.device, pretended: PretendedCuda | None = None
) -> dict:
    """Make two steps with the loop of the runs. The first makes tables that last; the second is looked at."""
    info = get_task(config.task).info
    model = build_model(config, info.vocab_size, info.num_classes).to(device)
    seen: dict = {"logits": []}
    taken = 0

    def after_step() -> bool:
        nonlocal taken
        taken += 1
        if taken == 2:
            if pretended is not None:
                seen.update(launches=pretended.launches, lines=pretended.lines.copy(), events=dict(pretended.events))
            raise EnoughError
        if pretended is not None:
            pretended.reset()
        return False

    model.register_forward_hook(lambda _, __, out: seen["logits"].append(out.detach()))
    callbacks = Callbacks(
        validate=lambda _: None,
        save=lambda: None,
        save_due=lambda: False,
        stop_requested=after_step,
        report=lambda *_: None,
    )
    phase = phases_of(config)[-1]  # of the task, without denoising, which waits for the device once a step
    layers, optimizer, state = list(mixers(model)), build_optimizer(model, config), TrainState(step=phase.start)
    with contextlib.suppress(EnoughError), BatchesAhead(batches, device) as ahead:
        train(model, model, layers, optimizer, ahead, config, phase, state, callbacks, device, SINGLE)
    if pretended is not None:
        seen["on the CPU"] = [
            f"{path}.{name}"
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and not isinstance(value, OnCuda)
        ]
        model.eval()
        pretended.reset()
        batch = batches.batch(0, CPU).staged(device).to(device)
        with torch.no_grad(), autocast(device, config.train.precision):
            model(batch.tokens, batch.mask)
        for event, count in pretended.events.items():
            seen["events"][event] = seen["events"].get(event, 0) + count
        if pretended.home.type == "cpu":
            for mixer in mixers(model):
                mixer.statistics()
                mixer.token_statistics()
    return seen


def case(config: RunConfig, *, count: int, length: int, values: bool = True, compare: bool = True) -> dict:
    batches = FixedBatches(config, count, length)
    expected = steps(config, batches, torch.device("cpu"))["logits"][0] if compare else None
    with pretended_cuda(ROOT, values=values) as pretended:
        seen = steps(config, batches, torch.device("cuda"), pretended)
    events = [asdict(event) | {"count": count} for event, count in seen["events"].items()]
    line = {
        "launches": seen["launches"],
        "lines": dict(seen["lines"].most_common(5)),
        "on the CPU": seen["on the CPU"],
        "events": events,
    }
    if expected is not None:
        line["error"] = float((seen["logits"][0].held - expected).norm() / expected.norm())
    return line


def chosen(variant: str) -> Iterator[tuple[str, dict[str, object]]]:
    for options in OPTIONS.get(variant, [{}]):
        yield f"{variant} {options or ''}".strip(), {f"variant.{name}": value for name, value in options.items()}


def settings(precision: str, dropout: float, length: int) -> dict[str, object]:
    return {
        "train.precision": precision, "model.dropout": dropout, "model.attention_dropout": dropout,
        "model.max_length": length, "model.num_layers": 2, "train.steps": 10, "train.warmup_steps": 1,
        "train.eval_every": 10,
    }  # fmt: skip


def small(variants: list[str]) -> Iterator[Job]:
    for variant in variants:
        for name, options in chosen(variant):
            for precision in ("float32", "bfloat16"):
                config = configured("listops", variant, **options, **settings(precision, 0.0, 96))
                yield f"{name} {precision}", partial(case, config, count=3, length=96, compare=variant not in NOISY)
            config = configured("listops", variant, **options, **settings("float32", 0.1, 96))
            yield f"{name} dropout", partial(case, config, count=3, length=96, compare=False)


def large(variants: list[str]) -> Iterator[Job]:
    for variant in variants:
        for name, options in chosen(variant):
            config = configured("listops", variant, **options, **settings("float32", 0.1, 4000))
            yield name, partial(case, config, count=32, length=4000, values=False, compare=False)


def models(_: list[str]) -> Iterator[Job]:
    for profile in profile_names():
        for task in load_profile(profile).tasks:
            config = configured(task, "full", profile, **{"train.precision": "bfloat16", "model.num_layers": 1})
            longest = config.model.max_length
            length = min(96, longest) if get_task(task).info.grid is None else longest
            yield f"{task} of {profile}", partial(case, config, count=3, length=length, values=False, compare=False)
    for pool in ("contextpool", "max"):
        config = configured("image", "conv", **{"model.family": "convnet", "model.pool": pool, "model.dropout": 0.0})
        yield f"convnet with {pool}", partial(case, config, count=3, length=config.model.max_length)
    for precision in ("float32", "bfloat16"):
        yield f"stopped and resumed {precision}", partial(stop_and_resume, precision)


def stop_and_resume(precision: str) -> dict:
    """Train, stop, continue from the checkpoint, evaluate and record, all on the device."""
    with tempfile.TemporaryDirectory() as name, pretended_cuda(ROOT) as pretended:
        whole, resumed = whole_and_resumed(Path(name), precision, torch.device("cuda"))
        mixed = [asdict(event) for event in pretended.events if event.kind == "mixed"]
    return {"resumed": resumed.cost.resumed, "same": resumed.outcome == whole.outcome, "mixed": mixed}


def whole_and_resumed(folder: Path, precision: str, device: torch.device) -> tuple[RunRecord, RunRecord]:
    """Execute a run at once, and again with a stop after four steps; return both records."""
    data, config = tiny_data(folder / "data"), tiny("contextpool", **{"train.precision": precision})
    whole = execute(config, data, Store(folder / "whole"), device=device)
    asked = iter([False] * 4 + [True])
    with contextlib.suppress(PreemptedRunError):
        execute(config, data, Store(folder / "stopped"), lambda: next(asked), device=device)
    return whole, execute(config, data, Store(folder / "stopped"), device=device)


def planted(_: list[str]) -> Iterator[Job]:
    for module in MODULES:
        yield module.__name__, partial(planted_fault, module)


def planted_fault(module: type[Right]) -> dict:
    kinds = set()
    with pretended_cuda(ROOT) as pretended:
        here = module().to("cuda")
        x, mask = torch.randn(2, 5, WIDTH, device="cuda"), torch.ones(2, 5, dtype=torch.bool, device="cuda")
        pretended.reset()
        try:
            here(x, mask).sum().backward()
        except RuntimeError:
            kinds = {"raised"}
    # What CUDA does not have for this dtype, older versions of torch refuse by themselves.
    kinds = {"raised" if event.kind == "unsupported" else event.kind for event in pretended.events} or kinds
    # Fused attention always sums in no fixed order in its backward pass.
    kinds -= set() if module is SumsInNoOrder else {"unordered"}
    return {"kinds": sorted(kinds), "found_by": module.found_by, "where": [event.where for event in pretended.events]}


def lines(kind: str, variants: list[str]) -> Iterator[dict]:
    for name, job in {"small": small, "large": large, "models": models, "planted": planted}[kind](variants):
        try:
            line = job()
        except Exception as error:  # noqa: BLE001 - it is what is reported
            where = [
                f"{Path(each.filename).relative_to(ROOT)}:{each.lineno}"
                for each in traceback.extract_tb(error.__traceback__)
                if each.filename.startswith(str(ROOT)) and "pretended" not in each.filename
            ]
            line = {"raised": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", "where": where[-1:]}
        yield {"case": name} | line


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in lines(sys.argv[1], sys.argv[2:] or available()):
        print(json.dumps(each), flush=True)
