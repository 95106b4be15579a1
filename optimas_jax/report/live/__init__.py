"""What a terminal shows of a run in progress: one table in place, and a line for each decision."""
