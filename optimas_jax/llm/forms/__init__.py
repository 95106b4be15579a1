"""The form of prompts and of answers: schemas, typed answers, templates, tools."""
