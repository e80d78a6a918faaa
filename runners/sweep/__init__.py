# SPDX-License-Identifier: Apache-2.0
"""Many runs: `lra-sweep` expands a suite into runs and starts each one as its own process through a launcher.

`driver` starts runs and repeats those that crashed, `state` reads from the store where each run stands, `progress` and
`tables` show it, and `launchers` holds the places where runs can be started: this machine, Ray and Slurm. Import from
the modules; the package itself exports nothing, which keeps `lra-sweep --help` fast.
"""

__all__: list[str] = []
