"""Sweeps: one configuration with every combination of other values, each point a run of its own."""
