# SPDX-License-Identifier: Apache-2.0
"""The command lines: one file each. `options` holds the options that several of them take."""

from ..fresh_python import fix_order_of_sets

__all__: list[str] = []

fix_order_of_sets()  # before what a command imports, which would be imported twice
