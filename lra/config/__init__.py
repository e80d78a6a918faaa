"""Configuration: profiles, suites and overrides become the complete, strict configuration of a run."""

from lra.config.schema import ModelConfig, RunConfig, TrainConfig, VariantChoice

__all__ = ["ModelConfig", "RunConfig", "TrainConfig", "VariantChoice"]
