"""Formats from and to domain types: OpenAI's JSON, headers, events, batch lines, OpenAPI. Calls nothing."""
