"""Engines: where the cells of a sweep run. Each only ever runs `lra-run --config -` as a fresh process."""
