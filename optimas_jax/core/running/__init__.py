"""Running systems: many runs at once on one event loop, the calls of frameworks, what is watched meanwhile."""
