"""Files of a run folder: reading and writing them, and what they hold."""
