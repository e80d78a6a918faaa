"""Compile the Triton kernels ahead of time, without a GPU, and read what the compiler made of them.

python -m tests.contextpool.backends.compiled            compile every form and write the table, `compiled.json`
python -m tests.contextpool.backends.compiled NAME ...   compile these forms and print a line of JSON for each

The tests hold the kernels to the table: they must not spill, and no figure may rise. The figures are those of one
version of Triton, which brings its own assembler; the table says which.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
CAPABILITIES = (80, 90)
KERNELS = ("forward", "forward shifted", "rows", "columns")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Compiled:
    """A kernel, and the constants that it is compiled with."""

    capability: int
    precision: str
    kernel: str
    causal: bool = False
    normalized: bool = True
    width: int = 128
    """Features of a token. Multiples of 16 are loaded in wider pieces than others."""
    sizes: tuple[int, int, int] | None = None
    """In place of those in `SIZES`."""

    def __str__(self) -> str:
        form = f"{'causal' if self.causal else 'two-sided'}{'' if self.normalized else ' not normalised'}"
        return f"sm_{self.capability} {self.precision} {self.kernel} {form} {self.width} wide"


FORMS = {
    str(form): form
    for capability in CAPABILITIES
    for precision in PRECISIONS
    for kernel in KERNELS
    for make in [partial(Compiled, capability, precision, kernel)]
    for form in [
        *(make(causal=causal) for causal in (False, True)),
        # Without a division, tokens of half precision are summed in float32.
        *(make(causal=causal, normalized=False) for causal in (False, True) if precision == "float32"),
        *(make(width=101) for _ in range(precision != "float16")),
    ]
}
"""Every form that a call can ask for, by name, with one even and one odd width."""
SPILLING = {"two warps": Compiled(80, "bfloat16", "forward", sizes=(64, 128, 2))}
"""A broken twin, whose threads need more registers than there are."""


def figures(form: Compiled) -> dict[str, int]:
    """Compile a form and return what it needs.

    Returns:
        Registers of a thread; bytes of stack and instructions that read or write it, which are both 0 where nothing is
        spilled; bytes of shared memory of a block; instructions of the kernel; and those of its longest loop, which
        goes over the tiles.
    """
    import torch
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from contextpool.backends import triton_kernels

    x = torch.empty(0, 0, form.width, dtype=getattr(torch, form.precision), device="meta")
    constants = triton_kernels._options(x, normalized=form.normalized, causal=form.causal)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    name, _, shifted = form.kernel.partition(" ")
    if name == "rows":
        constants = triton_kernels._for_rows(constants, x)
    if form.sizes is not None:
        constants["BLOCK"], constants["SLAB"], options["num_warps"] = form.sizes
    if name == "forward":
        constants["SHIFTED"] = bool(shifted)
    kernel = getattr(triton_kernels, f"_{name}_kernel")
    arguments = list(inspect.signature(kernel.fn).parameters)
    tokens = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}[form.precision]
    types = dict.fromkeys(("x", "y", "grad", "grad_x"), tokens) | dict.fromkeys(("count", "tiles", "spread"), "*i32")
    types |= dict.fromkeys(("length", "dim"), "i32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in arguments}
    # As at a call: memory begins at multiples of 16 bytes, and so does each row if the width is one.
    even = {argument for argument in arguments if signature[argument].startswith("*")}
    even |= {"dim"} if form.width % 16 == 0 else set()
    compiled = triton.compile(
        ASTSource(
            kernel,
            signature,
            constexprs=constants,
            attrs={(arguments.index(each),): [["tt.divisibility", 16]] for each in even},
        ),
        target=GPUTarget("cuda", form.capability, 32),
        options=options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, option, file.name], check=True, capture_output=True, text=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    instructions = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    backward = [
        (at - int(target, 16)) // 16 + 1
        for at, text in instructions
        for target in re.findall(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if int(target, 16) < at
    ]
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage)}
    return {
        "registers": used["REG"],
        "stack": used["STACK"],
        "spilled": sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in instructions),
        "shared": compiled.metadata.shared,
        "instructions": len(instructions),
        "loop": max(backward),
    }


def main(names: list[str]) -> None:
    """Print or write the figures of forms."""
    chosen = {name: (FORMS | SPILLING)[name] for name in names} or FORMS
    table = {}
    with ProcessPoolExecutor() as pool:
        for name, line in zip(chosen, pool.map(figures, chosen.values()), strict=True):
            table[name] = json.dumps(line)
            print(json.dumps({"form": name, **line}), flush=True)
    if not names:
        lines = ",\n".join(f"  {json.dumps(name)}: {line}" for name, line in table.items())
        TABLE.write_text(f'{{\n "triton": "{version("triton")}",\n "forms": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
