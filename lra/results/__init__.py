# SPDX-License-Identifier: Apache-2.0
"""What runs leave behind: records, checkpoints, leases and measurements, and the records as a data frame."""

from lra.results.dataframe import load, record_frame
from lra.results.records import Cost, Count, Outcome, RunRecord, Store, read_record

__all__ = ["Cost", "Count", "Outcome", "RunRecord", "Store", "load", "read_record", "record_frame"]
