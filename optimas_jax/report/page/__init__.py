"""Pages: ``report.html`` of a run, and what the pages of comparisons share with it (``base``)."""
