# SPDX-License-Identifier: Apache-2.0
"""Figures of runs and measurements, drawn from a result set.

`draw_all` writes every figure into a folder; `all_figures` yields them one by one. The figure of pooling widths, which
runs a trained model, is in `reports.figures.pooling_widths`.
"""

from .draw import all_figures, draw_all

__all__ = ["all_figures", "draw_all"]
