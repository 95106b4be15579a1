"""The tape: paid results on disk, and completers that read it first."""
