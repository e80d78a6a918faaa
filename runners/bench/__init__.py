# SPDX-License-Identifier: Apache-2.0
"""Time, memory and FLOPs of a training step by length: `lra-bench` compares every variant with full attention.

`measure` turns variants and lengths into records, from a step (`workload`), its peak memory (`memory`, in a process of
its own: `memory_process`) and its time (`timing`); `crossover` and `tables` make the output. Import from the modules;
the package itself exports nothing, which keeps `lra-bench --help` fast.
"""

__all__: list[str] = []
