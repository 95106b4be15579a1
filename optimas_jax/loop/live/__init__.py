"""Status of a run while it runs: ``live.json``, and progress that shows it."""
