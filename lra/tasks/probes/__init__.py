# SPDX-License-Identifier: Apache-2.0
"""Probes: generated tasks that measure one ability each, with a certified distance. See docs/probes.md.

They are written as a task of a user's own is: one file each, with nothing but options, a function that draws an
example, and what is needed to check the certificate.
"""

from __future__ import annotations

from typing import Any

from lra.tasks.generated import GeneratedTask
from lra.tasks.probes.base import CertificateError, Probe, ProbeOptions, check_certificate
from lra.tasks.probes.copy import Copy
from lra.tasks.probes.group import GroupA5, GroupS3, Parity
from lra.tasks.probes.listops_distance import ListOpsDistance
from lra.tasks.probes.needle import Needle
from lra.tasks.probes.recall import Recall
from lra.tasks.probes.segments import Segments

__all__ = ["ALL", "CertificateError", "Probe", "ProbeOptions", "check_certificate"]

ALL: tuple[GeneratedTask[Any], ...] = (
    Needle(),
    Recall(),
    Copy(),
    ListOpsDistance(),
    Parity(),
    GroupS3(),
    GroupA5(),
    Segments(),
)
