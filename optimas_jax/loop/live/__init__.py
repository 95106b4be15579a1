"""What a run tells of itself while it runs: ``live.json``, and progress that shows it."""
