"""Sweeps: one configuration with every combination of other values; each point is a run of its own."""
