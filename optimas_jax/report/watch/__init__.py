"""The page of ``optimas watch``: a run while it goes on, with pause and stop. Needs the extra ``serve``."""
