"""Optimisers side by side: the same system, data, test seeds and budget of LM tokens for each of them."""
