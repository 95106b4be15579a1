"""Clients of model servers: OpenAI, Anthropic, and servers with the same APIs."""
