# SPDX-License-Identifier: Apache-2.0
"""A zoo of sequence mixers under one contract.

A mixer is attention, or a layer used in its place. `create` builds one by name, `register_variant` adds one,
`get_variant` returns what is known of one, and `attention_zoo.checks` holds the contract as functions. The package
imports torch and nothing else of this project.
"""

from attention_zoo.base import LayerDims, OptionError, ParameterGroup, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import (
    RegistrationError,
    UnknownVariantError,
    VariantSpec,
    available,
    create,
    get_variant,
    register_variant,
)

__all__ = [
    "HeadProjections",
    "LayerDims",
    "OptionError",
    "ParameterGroup",
    "QkvConfig",
    "RegistrationError",
    "SequenceMixer",
    "Traits",
    "UnknownVariantError",
    "VariantConfig",
    "VariantSpec",
    "available",
    "create",
    "get_variant",
    "option",
    "register_variant",
]
