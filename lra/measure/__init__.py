# SPDX-License-Identifier: Apache-2.0
"""What is measured besides accuracy: the machine, and floating-point operations."""

from lra.measure.environment import describe_environment
from lra.measure.flops import FlopCount, count_flops

__all__ = ["FlopCount", "count_flops", "describe_environment"]
