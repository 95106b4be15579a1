"""Clients of servers: OpenAI, Anthropic, and whatever speaks as they do."""
