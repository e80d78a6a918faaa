# SPDX-License-Identifier: Apache-2.0
"""Fast forms of attention and of convolution, on heads and without parameters.

A module of this package takes tensors and returns tensors; the variants own the parameters. Each form is tested against
`attention_zoo.functional` or against its formula written out, outputs and gradients. The modules are imported by name.
"""

__all__: list[str] = []
