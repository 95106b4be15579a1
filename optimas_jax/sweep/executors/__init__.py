"""Where the points of a sweep run: in processes of this machine, on a Ray cluster, or in a Slurm array."""
