"""Texts: JSON in them, secrets, frames of errors, names that were mistyped."""
