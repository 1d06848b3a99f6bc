"""imagegen: an OpenAI-compatible image generation API on AWS. docs/architecture.md tells the layout."""
