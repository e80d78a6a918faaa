# SPDX-License-Identifier: Apache-2.0
"""The built-in variants, one per file: options, mixer class and registration.

The name of the file is the name of the variant. Get one by `attention_zoo.get_variant`, which imports only its file.
"""

__all__: list[str] = []
