"""Mixers with one fault each that only a GPU would show, and the kind of event that must give them away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32


class Right(nn.Module):
    """Has none of the faults."""

    found_by = ""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return self.map(x).unflatten(2, (2, -1)).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.heads(x)
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask[:, None, None])


class PositionsOnTheCpu(Right):
    found_by = "mixed"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.map(x) * torch.arange(x.shape[1])[:, None]


class TableThatIsNoBuffer(Right):
    found_by = "mixed"

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.map(x) * self.table


class GeneratorOfTheCpu(Right):
    found_by = "mixed"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.map(x)
        return x * torch.empty_like(x).bernoulli_(0.5, generator=torch.Generator().manual_seed(0))


class ReadsANumber(Right):
    found_by = "wait"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.map(x) * mask.sum().item()


class AsksWhetherAllIsReal(Right):
    found_by = "wait"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.map(x) if mask.all() else self.map(x) * mask[..., None]


class PicksByMask(Right):
    found_by = "wait"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.map(x)[mask]


class CopiesAListInEachCall(Right):
    found_by = "wait"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.map(x) * torch.tensor([1.0, 2.0], device=x.device)[0]


class FourierTransformInHalf(Right):
    found_by = "raised"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.fft.rfft(self.map(x).to(torch.bfloat16), dim=1).abs()


class HeadsThatNoKernelTakes(Right):
    found_by = "unfused"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = F.pad(self.heads(x), (0, 1))
        return F.scaled_dot_product_attention(heads, heads, heads)


class SumsInNoOrder(Right):
    found_by = "unordered"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        index = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
        return torch.zeros_like(x).index_add(1, index, self.map(x))


MODULES = (
    Right, PositionsOnTheCpu, TableThatIsNoBuffer, GeneratorOfTheCpu, ReadsANumber, AsksWhetherAllIsReal, PicksByMask,
    CopiesAListInEachCall, FourierTransformInHalf, HeadsThatNoKernelTakes, SumsInNoOrder,
)  # fmt: skip
