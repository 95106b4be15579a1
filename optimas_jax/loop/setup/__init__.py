"""Setting up a run: checks before anything is paid for, completers, what it starts from, its parts put together."""
