"""Speaks OpenAI's images API, to OpenAI and to resellers of its format. Defines its models, fields and limits."""
