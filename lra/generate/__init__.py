"""Generators of task data."""
