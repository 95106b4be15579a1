"""Benchmarks of speed: local rewards, training and sampling on this machine, compared with other systems."""
