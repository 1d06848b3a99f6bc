"""Converts domain types from and to wire formats: OpenAI's JSON, headers, events, batch lines, OpenAPI."""
