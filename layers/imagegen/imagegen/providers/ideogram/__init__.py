"""Ideogram 3.0, as resellers serve it beside OpenAI's API."""
