# SPDX-License-Identifier: Apache-2.0
"""Data on disk: downloads, archives, prepared arrays, and the batches made of them.

`lra.data.batching` is imported by its own name, since it needs torch and the rest does not.
"""

from lra.data.dataset import PreparedData, data_home, open_prepared, write_prepared
from lra.data.split import Split

__all__ = ["PreparedData", "Split", "data_home", "open_prepared", "write_prepared"]
