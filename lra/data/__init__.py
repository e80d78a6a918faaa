"""Data on disk: downloads, archives, prepared arrays, and the batches made of them."""
