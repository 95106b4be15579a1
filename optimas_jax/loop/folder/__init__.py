"""What a run leaves in its folder beside the state of its search: evaluations, proposals, and what commands took."""
