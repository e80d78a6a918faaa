"""Pooling in linear time: sums over a pyramid of blurred sequences."""
