"""Properties of texts: sorts of texts, languages, sorts of answers."""
