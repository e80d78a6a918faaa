# SPDX-License-Identifier: Apache-2.0
"""Models whose training steps go through `torch.compile`: one graph for each length, and no silent way around it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lra.errors import UsageError

MOST_GRAPHS = 64
"""More than a run needs: `lra.data.batching.MOST_LENGTHS` lengths, and parts of a batch in two sizes."""
BITS = {"AVX2": 256, "AVX512": 512}
"""Width of vectors by the name that torch has for what it uses of a processor, where the compiler tries it first."""


def compile_model(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the calls of a model, in place.

    The whole model is one graph, or an error. A graph is for fixed sizes: one for any size would depend on which sizes
    came first, so that a resumed run would compute with other code. If there are ever too many sizes, that is an error
    too; without `fullgraph`, torch would go on with uncompiled code and say nothing.

    Args:
        model: The model.
        backend: What makes code of a graph; "eager" only runs it, for tests.

    Raises:
        UsageError: torch compiles nothing in this process, or not all.
    """
    import torch._dynamo  # here, since it takes a second

    torch._dynamo.config.cache_size_limit = MOST_GRAPHS  # `recompile_limit` is the same, but torch 2.6 has it not
    if os.environ.get("TORCH_COMPILE_OVERRIDE_BACKENDS") or not _compiles():
        raise UsageError(
            "compile: torch does not compile all steps in this process, as with TORCHDYNAMO_DISABLE=1 or a value of "
            "TORCH_COMPILE_OVERRIDE_BACKENDS; unset that, or leave --compile out"
        )
    if backend == "inductor" and all(parameter.device.type == "cpu" for parameter in model.parameters()):
        fix_instructions()
    model.compile(fullgraph=True, dynamic=False, backend=backend)


def fix_instructions() -> None:
    """Let the compiler use those vector instructions of the processor that torch's own code uses.

    It finds out by a small program whether it can, and takes any failure of it for a processor without them, such as
    one by a signal or by a lack of memory. Its code then computes other last bits, also later from its cache: the keys
    there name the instructions only where they are asked for.

    Raises:
        UsageError: The compiler cannot make code with these instructions here.
    """
    from torch._inductor import config, cpu_vec_isa  # here, since it takes seconds

    capability = torch.backends.cpu.get_cpu_capability()
    bits = cpu_vec_isa.pick_vec_isa().bit_width()
    if bits != BITS.get(capability, bits):
        raise UsageError(
            f"compile: the C++ compiler made no code for {capability} of this processor, and without that the numbers "
            "are others; run it again, or set ATEN_CPU_CAPABILITY=default if the compiler is too old"
        )
    config.cpp.simdlen = bits


def cache_folder() -> str:
    """Return the folder in which torch's compiler keeps code for later runs."""
    from torch._inductor.runtime import cache_dir_utils

    return str(cache_dir_utils.cache_dir())


def _compiles() -> bool:
    """Say whether a function that is compiled reaches the compiler."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:  # noqa: ARG001
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(1))
    return bool(graphs)


def uncompiled(*, compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context in which compiled models run as they are written.

    Evaluation has batches of many sizes, and whoever scores the weights later does it without the compiler.

    Args:
        compiled: Whether there are compiled models; otherwise the compiler need not be imported.
    """
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def is_of_compiler(error: BaseException) -> bool:
    """Say whether an error comes from the compiler, and not from what it compiles."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
