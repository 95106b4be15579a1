"""Forecast: what the host loop will take, from rehearsals of the loop itself on imagined models."""
