"""Midjourney by the protocol of midjourney-proxy, as resellers serve it beside OpenAI's API."""
