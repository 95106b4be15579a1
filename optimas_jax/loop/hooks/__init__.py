"""Functions of the user's that take part in a run: callbacks, and what stands in the place of steps of the search."""
