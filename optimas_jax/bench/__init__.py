"""The instrument: what local rewards and sampled tokens cost here, beside other systems that do the same work."""
