# SPDX-License-Identifier: Apache-2.0
"""Configuration: profiles, suites and overrides become the complete, strict configuration of a run.

`lra.config.resolve` and `lra.config.suites` are imported by their own names, since they load torch with the variants.
"""

from lra.config.builtin import profile_names, suite_names
from lra.config.schema import ModelConfig, RunConfig, TrainConfig, VariantChoice

__all__ = ["ModelConfig", "RunConfig", "TrainConfig", "VariantChoice", "profile_names", "suite_names"]
