"""OpenAI's JSON on one side, our types on the other. The only place that knows statuses and wire names."""
