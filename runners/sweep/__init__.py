"""`lra-sweep`: many runs, on this machine, Ray or Slurm."""
