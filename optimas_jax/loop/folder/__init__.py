"""Files of a run folder beside the state of the search: evaluations, proposals, and the costs of commands."""
