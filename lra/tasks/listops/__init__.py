# SPDX-License-Identifier: Apache-2.0
"""ListOps: the value of nested list operations."""

from lra.tasks.listops.task import ListOps

__all__ = ["ListOps"]
