# SPDX-License-Identifier: Apache-2.0
"""Pathfinder and Path-X: whether two points lie on one dashed curve."""

from lra.tasks.pathfinder.task import Pathfinder, Pathfinder64, PathfinderContinuous, PathX, PathX256

__all__ = ["PathX", "PathX256", "Pathfinder", "Pathfinder64", "PathfinderContinuous"]
