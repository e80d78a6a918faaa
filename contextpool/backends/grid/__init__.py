"""Pooling on a grid of pixels."""
