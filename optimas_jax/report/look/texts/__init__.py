"""What a text is: sorts, languages, and what an answer may turn into."""
