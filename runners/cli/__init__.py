# SPDX-License-Identifier: Apache-2.0
"""The command lines: one file each. `options` holds the options that several of them take."""

__all__: list[str] = []
