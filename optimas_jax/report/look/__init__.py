"""Look here first: what a person should see of a run before anything else, found by rules in its folder."""
