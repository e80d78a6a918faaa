"""Exact forms of the pooling operator, one file or folder each."""
