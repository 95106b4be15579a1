"""Forecast: expected costs of the host loop, from rehearsals of the loop itself on imagined models."""
