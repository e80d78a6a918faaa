# SPDX-License-Identifier: Apache-2.0
"""One run: plan, data, training loop, evaluation and record. `run.run` is the whole of it."""

__all__: list[str] = []
