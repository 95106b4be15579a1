"""The sections of a run's page: the content of each is a function of the run's files."""
