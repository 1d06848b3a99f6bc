"""Kling's images, as resellers serve them beside OpenAI's API."""
