"""Training loop, evaluation, one cell, command lines. Installed as `lra.runners`; siblings are imported relatively."""
