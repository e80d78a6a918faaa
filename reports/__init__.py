# SPDX-License-Identifier: Apache-2.0
"""Reports on the records of runs: tables, figures, statistics and a page. Installed as `lra.reports`.

Imports are relative inside. The public parts are the result set that `result_set.load_stores` returns, the functions of
`tables` and `figures`, `render.render` and the command line `cli`.
"""

__all__ = ["cli", "figures", "render", "result_set", "tables"]
