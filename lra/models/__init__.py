"""The models around a mixer: a transformer encoder for every task, and a small ConvNet for pixels."""
