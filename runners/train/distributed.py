# SPDX-License-Identifier: Apache-2.0
"""One run over several processes, as `torchrun` starts them: each computes its shard of every batch.

All processes hold the same weights and do the same steps. `DistributedDataParallel` averages the gradients, and shards
have the same size, so N processes compute what one computes with accumulation N. The main process alone writes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attention_zoo import SequenceMixer
from lra.errors import LraError, UsageError

T = TypeVar("T")


class LostProcessError(LraError):
    """Another process of this run has ended, and has said why."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class RankInfo:
    """The place of this process among the processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The rank among the processes on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process holds the lease and writes."""
        return self.rank == 0


SINGLE = RankInfo()

_ENDED = re.compile("remote process|remote peer|closed by peer|reset by peer|broken pipe", re.IGNORECASE)
"""What NCCL says when another process is gone. Its other errors are of this process, and keep their names."""


def rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Read the variables that `torchrun` sets; without them the run has a single process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names):
        return SINGLE
    rank, size, local_rank = (int(environment[name]) for name in names[:3])
    return RankInfo(rank, size, local_rank)


def local_device(device: torch.device, ranks: RankInfo) -> torch.device:
    """Return the device of this process: of several processes, each takes the GPU of its local rank.

    Raises:
        UsageError: The machine has fewer GPUs than processes, or the device is one GPU by number.
    """
    if ranks.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UsageError(f"--device {device}: torchrun gives each process its own GPU; write --device cuda")
    if ranks.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"process {ranks.local_rank} has no GPU, this machine has {torch.cuda.device_count()}: "
            "--nproc-per-node is one process per GPU"
        )
    own = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(own)
    return own


def init(ranks: RankInfo, device: torch.device) -> None:
    """Connect the processes of the run: NCCL between GPUs, gloo between CPUs."""
    if ranks.size == 1:
        return
    # This module keeps the default group that exists when it is imported, and optimizers import it later. The threads
    # of gloo would then outlive `destroy`, and sometimes abort a process that is ending (pytorch issue 190489).
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def destroy(ranks: RankInfo) -> None:
    """Disconnect the processes at the end."""
    if ranks.size > 1:
        gc.collect()  # a replica in a cycle of references would keep the threads of gloo
        dist.destroy_process_group()


@contextlib.contextmanager
def communication() -> Iterator[None]:
    """Turn the error of a collective operation whose other process has ended into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        if _is_of_another(error):
            raise LostProcessError("another process of this run has ended") from error
        raise


def _is_of_another(error: RuntimeError) -> bool:
    """Say whether an error comes from the end of another process."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, dist.DistBackendError):
        return _ENDED.search(str(error)) is not None
    return isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo raises a plain RuntimeError


def all_reduce(values: Tensor, ranks: RankInfo, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Combine the values of all processes, in place, and return them."""
    if ranks.size > 1:
        with communication():
            dist.all_reduce(values, operation)
    return values


def all_reduce_or(flags: list[bool], ranks: RankInfo) -> list[bool]:
    """Return, for each flag, whether any process has set it."""
    if ranks.size == 1:
        return flags
    return all_reduce(torch.tensor(flags, dtype=torch.uint8), ranks, dist.ReduceOp.MAX).bool().tolist()


def all_equal(text: str, ranks: RankInfo) -> bool:
    """Return whether all processes have the same text."""
    texts = [text] * ranks.size
    if ranks.size > 1:
        with communication():
            dist.all_gather_object(texts, text)
    return len(set(texts)) == 1


def broadcast(value: T, ranks: RankInfo) -> T:
    """Return the value that the main process has."""
    values = [value]
    if ranks.size > 1:
        with communication():
            dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier(ranks: RankInfo) -> None:
    """Wait for all processes.

    The tensor is on the CPU, so gloo waits for half an hour. `dist.barrier` would go over NCCL, which gives up after
    ten minutes, and preparing data can take longer.
    """
    all_reduce(torch.zeros(1), ranks)


class _ModelWithPenalties(nn.Module):
    """A model whose forward pass also returns the penalties of its mixers."""

    def __init__(self, model: nn.Module, mixers: list[SequenceMixer]) -> None:
        super().__init__()
        self.model, self.mixers = model, mixers  # a plain list registers no module twice
        # DDP warns if it looks for unused parameters and finds none. This one is never used.
        self.unused = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> tuple[Any, list[Tensor]]:
        """Return what the model gives, and the penalties that there are."""
        output = self.model(tokens, mask)
        return output, [term for mixer in self.mixers if (term := mixer.auxiliary_loss()) is not None]


class Replica(DistributedDataParallel):
    """A model that averages its gradients over all processes. It takes tokens and mask.

    A parameter that no process uses keeps None as its gradient, so the optimiser leaves it alone as it does with one
    process. This needs `find_unused_parameters`, and the penalties as outputs, because a parameter may occur in nothing
    else. It also keeps the buckets of gradients as they were built first, so a resumed run adds in the same order.
    Buffers are not broadcast: they are functions of seed and step.
    """

    def __init__(self, model: nn.Module, mixers: list[SequenceMixer]) -> None:
        with communication(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers gets another name in torch 2.13
            super().__init__(_ModelWithPenalties(model, mixers), broadcast_buffers=False, find_unused_parameters=True)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Any:
        """Return what the model gives: (batch, num_classes) logits, or what a denoiser found."""
        outputs: tuple[Any, list[Tensor]] = super().forward(tokens, mask)  # type: ignore[no-untyped-call]
        return outputs[0]
