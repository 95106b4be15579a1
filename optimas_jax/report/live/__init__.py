"""What a terminal shows of work that goes on: one table in place, and a line for each decision."""
