"""Causal pooling in linear time: sums over a tree of nodes."""
