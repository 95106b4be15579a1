"""The sections of a run's page: what each shows is a function of the run's files."""
