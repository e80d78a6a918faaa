# SPDX-License-Identifier: Apache-2.0
"""Long Range Arena harness: tasks, prepared data, shared models, strict configuration, records and checkpoints."""
