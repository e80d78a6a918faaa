# SPDX-License-Identifier: Apache-2.0
"""Adaptive context pooling (Huang et al., ICML 2022): the operator, a module for sequences, a layer for ConvNets.

The variant of the attention zoo is registered by `contextpool.variant`, which this import leaves alone.
"""

from contextpool.config import PoolConfig
from contextpool.conv2d import ContextPool2d
from contextpool.functional import context_pool
from contextpool.module import ContextPool

__all__ = ["ContextPool", "ContextPool2d", "PoolConfig", "context_pool"]
