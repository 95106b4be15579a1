"""The result of a run for other software: DSPy's JSON, messages of OpenAI, Markdown, classifiers of local rewards."""
