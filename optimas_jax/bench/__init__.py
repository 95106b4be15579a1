"""Benchmarks of speed: local rewards, training and sampling on this machine, beside other systems on the same work."""
