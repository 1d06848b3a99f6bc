"""imagegen: an OpenAI-compatible image generation API on AWS. docs/architecture.md explains the layout."""

VERSION = "0.1.0"  # as in pyproject.toml
