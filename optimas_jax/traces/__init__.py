"""Imports existing data: recorded calls of a program in production, and prompts that were written elsewhere."""
