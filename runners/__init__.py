# SPDX-License-Identifier: Apache-2.0
"""The applications that run things: training, sweeps, measurements and their command lines. Installed as `lra.runners`.

Imports are relative inside, because the folder is mapped under `lra` only in the wheel. Nothing here is public.
"""

__all__: list[str] = []
