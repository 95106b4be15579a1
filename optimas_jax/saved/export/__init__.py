"""What a run found, for other software: DSPy's JSON, messages of OpenAI, Markdown, classifiers of local rewards."""
