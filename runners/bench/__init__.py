"""`lra-bench`: speed and memory by length."""
