"""One run over several processes, as `torchrun` starts them. Each computes a part of every batch of the run.

All processes hold the same weights and do the same steps. A batch is cut as `train.accumulation` cuts it, the parts
are dealt out, and the gradients, each weighted by its share of the examples, are added up. So N processes compute what
one computes with accumulation N. The first process alone touches the store.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lra.errors import LraError, UsageError

T = TypeVar("T")
NEVER = 2**62


class LostProcessError(LraError):
    """Another process of this run has ended; it has said why."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of one run, seen from one of them. Alone, no method communicates or changes anything.

    Every method is called by all processes, in the same order; each raises `LostProcessError` when one is gone.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def parts(self, accumulation: int) -> int:
        """Return how many parts a batch is cut into: `accumulation`, rounded up so that all processes get as many."""
        return -(-accumulation // self.size) * self.size

    def deal(self, items: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Yield this process's share of the items, each with its number among all."""
        return itertools.islice(enumerate(items), self.rank, None, self.size)

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up the gradients of all processes, in place. The graph, so the set of gradients, is the same in all."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _communicate(dist.all_reduce, flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def collect(self, sums: Tensor) -> list[float]:
        """Move what all processes have summed up into the tensor of the first, and return the totals to all."""
        if self.size == 1:
            return sums.tolist()
        _communicate(dist.all_reduce, sums)
        totals: list[float] = sums.tolist()
        if not self.leads:
            sums.zero_()
        return totals

    def total(self, values: Sequence[float]) -> list[float]:
        """Add up numbers, one by one."""
        return list(values) if self.size == 1 else self._reduce(values, torch.float64, dist.ReduceOp.SUM)

    def union(self, flags: np.ndarray) -> np.ndarray:
        """Return where any process has True, of arrays of bool."""
        if self.size == 1:
            return flags
        return np.asarray(self._reduce(flags.astype(np.uint8), torch.uint8, dist.ReduceOp.MAX), dtype=bool)

    def any(self, *flags: bool) -> list[bool]:
        """Return, for each flag, whether any process has raised it."""
        return self.union(np.asarray(flags)).tolist() if self.size > 1 else list(flags)

    def earliest(self, step: int) -> int:
        """Return the smallest of the steps that are not negative, which stands for none."""
        if self.size == 1:
            return step
        first = self._reduce([step if step >= 0 else NEVER], torch.int64, dist.ReduceOp.MIN)[0]
        return -1 if first == NEVER else first

    def hand_out(self, message: bytes = b"") -> bytes:
        """Return the message of the first process."""
        if self.size == 1:
            return message
        length = torch.tensor([len(message)])
        _communicate(dist.broadcast, length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.leads and message:
            content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        if len(content) > 0:
            _communicate(dist.broadcast, content, src=0)
        return content.numpy().tobytes()

    def meet(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)  # noqa: FBT003 - a flag that nobody needs

    def same(self, text: str) -> bool:
        """Say whether all processes have the same text."""
        return self.size == 1 or not self.any(self.hand_out(text.encode()) != text.encode())[0]

    def _reduce(self, values: Any, dtype: torch.dtype, how: Any) -> list[Any]:
        tensor = torch.as_tensor(values, dtype=dtype)
        _communicate(dist.all_reduce, tensor, op=how)
        return tensor.tolist()


ALONE = Team()


@dataclass(frozen=True, slots=True)
class Place:
    """Where `torchrun` has put this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on this machine."""


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Read what `torchrun` says in the environment; without it, this process is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names):
        return Place()
    rank, size, local_rank = (int(environment[name]) for name in names[:3])
    return Place(rank, size, local_rank)


def own_device(device: torch.device, here: Place) -> torch.device:
    """Return the device of this process: of several, each takes the GPU of its number.

    Raises:
        UsageError: The machine has fewer GPUs than processes, or one GPU was asked for by number.
    """
    if here.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UsageError(f"--device {device}: torchrun gives each process its own GPU; write --device cuda")
    if here.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"process {here.local_rank} has no GPU, this machine has {torch.cuda.device_count()}: "
            "--nproc-per-node is one process per GPU"
        )
    own = torch.device("cuda", here.local_rank)
    torch.cuda.set_device(own)
    return own


def join(here: Place, device: torch.device) -> Team:
    """Meet the other processes of the run: over NCCL where there are GPUs, over gloo where there are none."""
    if here.size == 1:
        return ALONE
    # Its functions keep the group that is there when they are imported, as optimizers do later: gloo's threads would
    # outlive `leave`, and now and then abort a process that ends (pytorch issue 190489).
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Team(here.rank, here.size)


def leave(team: Team) -> None:
    """Part, at the end of the run."""
    if team.size > 1:
        dist.destroy_process_group()


def _communicate(operation: Callable[..., Any], tensor: Tensor, **settings: Any) -> None:
    try:
        operation(tensor, **settings)
    except RuntimeError as error:
        raise LostProcessError("another process of this run has ended") from error
