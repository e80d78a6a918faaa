# SPDX-License-Identifier: Apache-2.0
"""The figure of pooling widths: sigma of every token in each layer of a trained ContextPool, on real examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from lra.config.schema import RunConfig
from lra.data.batching import collate
from lra.data.split import Split
from lra.errors import UsageError
from lra.models.precision import autocast
from lra.models.transformer import mixers
from lra.results.records import RunRecord, Store
from lra.tasks import pickles
from lra.tasks.listops.vocabulary import WORDS
from lra.trained import TrainedRun

from ..tables.locality import unit_of_widths
from .style import COLOURS, PAGE, new_figure, plain_ticks, shown

TOKENS_AS_TEXT = 72
"""Length of the longest example whose tokens are written under the axis."""
EXAMPLES_COUNTED = 64
"""Number of test examples in the distribution."""


@dataclass(frozen=True, kw_only=True)
class Supports:
    """The pooling widths of the tokens of some test examples."""

    layers: list[int]
    """Layers that pool."""
    sigma: list[np.ndarray]
    """The widths of each example: (layers, length)."""
    tokens: list[list[str] | None]
    """The names of the tokens of each example, or None for tasks whose tokens have no short names."""
    indices: list[int]
    """Positions of the examples in the test split."""
    unit: str = "tokens"
    """Of the widths."""


def load_supports(record: RunRecord, store: Store, data_dir: Path | None, count: int = EXAMPLES_COUNTED) -> Supports:
    """Run the chosen weights of a record over the first test examples.

    Args:
        record: The record of a run that has a number.
        store: The store of the record and its weights.
        data_dir: Folder of prepared data; None means the default one.
        count: Number of test examples to run.

    Raises:
        UsageError: The run diverged, its task has pairs, or its variant has no widths.
        StoreError: The weights are missing or damaged, or the data is not that of the record.
        DataError: The data is missing.
    """
    run, config = TrainedRun(record=record, store=store), record.config
    model, data = run.model(), run.data(data_dir)
    layers = list(mixers(model))
    split, found = data.split("test"), dict[int, list[np.ndarray]]()
    indices = list(range(min(count, len(split))))
    if split.documents > 1:
        raise UsageError(f"run {record.run_id[:12]} is of a task of pairs")
    with torch.no_grad(), autocast(torch.device("cpu"), config.train.precision):
        for index in indices:
            batch = collate(split, [index], config.padded_length, config.model.max_length, torch.device("cpu"))
            model(batch.tokens, batch.mask)
            length = int(split.document_lengths[index, 0])
            for number, layer in enumerate(layers):
                widths = layer.token_statistics().get("sigma")
                if widths is not None:
                    found.setdefault(number, []).append(widths[0, :length].float().numpy())
    if not found:
        raise UsageError(f"variant {config.variant.name!r} of run {record.run_id[:12]} has no widths to show")
    return Supports(
        layers=sorted(found),
        sigma=[np.stack([found[layer][row] for layer in sorted(found)]) for row in range(len(indices))],
        tokens=[_names(record.config, split, index) for index in indices],
        indices=indices,
        unit=unit_of_widths(config),
    )


def draw_supports(supports: Supports, title: str, examples: Sequence[int]) -> Figure:
    """Draw some examples as maps of layers by tokens, and the distribution over all as one box per layer.

    Args:
        supports: The widths.
        title: Description of the run; empty for none.
        examples: Positions in `supports` of the examples to show.
    """
    figure = new_figure(1.1 + (0.75 + 0.12 * len(supports.layers)) * len(examples) + 1.5, width=PAGE)
    heights = [*[1.0] * len(examples), 1.5]
    *maps, boxes = figure.subplots(len(examples) + 1, 1, height_ratios=heights)
    positive = np.concatenate([widths[widths > 0] for widths in supports.sigma])  # the width of a masked token is zero
    low, high = float(positive.min()), float(positive.max())
    scale = LogNorm(low, high) if low < high else Normalize(low, high)
    for axes, row in zip(maps, examples, strict=True):
        image = axes.imshow(supports.sigma[row], aspect="auto", cmap="cividis", norm=scale, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_yticks(range(len(supports.layers)), [str(layer) for layer in supports.layers])
        axes.set_ylabel("layer")
        axes.set_title(f"test example {supports.indices[row]}", loc="left")
        names = supports.tokens[row]
        if names is not None and len(names) <= TOKENS_AS_TEXT:
            axes.set_xticks(range(len(names)), [shown(name, 5) for name in names], rotation=90, fontsize=5.5)
            axes.tick_params(axis="x", length=0)
        else:
            axes.set_xlabel("token")
    bar = figure.colorbar(image, ax=maps, label=f"sigma ({supports.unit})", fraction=0.03, pad=0.01)
    per_layer = [
        np.concatenate([widths[i][widths[i] > 0] for widths in supports.sigma]) for i in range(len(supports.layers))
    ]
    boxes.boxplot(
        per_layer,
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        tick_labels=[str(layer) for layer in supports.layers],
        medianprops={"color": COLOURS[1]},
        boxprops={"color": COLOURS[0]},
    )
    boxes.invert_yaxis()
    boxes.set(xlabel=f"sigma ({supports.unit})", ylabel="layer")
    if isinstance(scale, LogNorm):
        boxes.set_xscale("log")
        plain_ticks(boxes.xaxis, *boxes.get_xlim())
        plain_ticks(bar.ax.yaxis, low, high)
    boxes.set_title(
        f"{len(per_layer[0]):,} tokens of {len(supports.sigma)} test examples: quartiles, 5 to 95 %", loc="left"
    )
    if title:
        figure.suptitle(shown(title, 110), fontsize=7.5)
    return figure


def _names(config: RunConfig, split: Split, index: int) -> list[str] | None:
    """Return the names of the tokens of an example; only those of ListOps are short enough to be read.

    In the pickles of Nystromformer, nobody knows which symbol has which number.
    """
    if config.task != "listops" or config.data.get("source") == pickles.SOURCE:
        return None
    return [WORDS[token] for token in split.tokens_of(index).tolist()]
