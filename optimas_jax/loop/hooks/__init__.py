"""Functions of the user's in a run: callbacks, and replacements for steps of the search."""
