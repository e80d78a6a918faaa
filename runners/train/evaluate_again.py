# SPDX-License-Identifier: Apache-2.0
"""Scores the chosen weights of a finished run again, from the folder of the run."""

from __future__ import annotations

from pathlib import Path

from lra.config.labels import row_name
from lra.data.split import SplitName
from lra.errors import LraError
from lra.measure.environment import decisive, describe_environment, why_other_bits
from lra.terminal import progress_bar
from lra.trained import TrainedRun

from .evaluate import DivergedError, evaluate
from .run import RunOptions


class OtherScoreError(LraError):
    """The weights of a run do not give the counts that were recorded of them."""

    exit_code = 4


def evaluate_again(run: TrainedRun, options: RunOptions, home: Path) -> list[str]:
    """Score validation and test, and compare the right answers with those of the record.

    Args:
        run: The run.
        options: The device, the size of the batches, and whether to show progress.
        home: Folder of prepared data.

    Returns:
        What to print: the run, and one line for each split.

    Raises:
        OtherScoreError: A count is another one.
        StoreError: The weights are missing or damaged, or the data or a program is another one.
        DataError: The data is missing or damaged.
        UsageError: The run ended without weights.
    """
    model = run.model(str(options.device))
    config, outcome = run.record.config, run.record.outcome
    assert outcome is not None  # the model has the weights of one
    data = run.data(home)
    splits: dict[SplitName, int] = {"validation": outcome.validation.correct, "test": outcome.test.correct}
    lines = [f"{row_name(config)}, seed {config.seed}, weights of step {outcome.selected_step}"]
    wrong = []
    for split, recorded in splits.items():
        examples = data.split(split)
        with progress_bar(title=split, unit="ex", shown=options.progress, total=len(examples), keep=False) as bar:
            try:
                score, _ = evaluate(
                    model,
                    examples,
                    device=options.device,
                    precision=config.train.precision,
                    padded_length=config.padded_length,
                    limit=config.model.max_length,
                    max_tokens=options.evaluation_tokens,
                    progress=bar.update,
                )
                answered = str(score.correct)
            except DivergedError:
                answered = "none: its outputs are not finite"
        if answered != str(recorded):
            wrong.append(f"{split}: {answered}, and {recorded} are recorded")
        lines.append(f"{split}: {answered} of {len(examples)} right, as recorded")
    if wrong:
        here = describe_environment(options.device) | {"processes": options.ranks.size}
        note = why_other_bits(decisive(run.record.environment), decisive(here))
        raise OtherScoreError(f"{lines[0]}: right answers in {'; in '.join(wrong)}{note}")
    return lines
