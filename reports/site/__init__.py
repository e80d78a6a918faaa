# SPDX-License-Identifier: Apache-2.0
"""A static site of all records: rankings by task and profile, a page for each variant and for each run."""

from .build import build_site

__all__ = ["build_site"]
