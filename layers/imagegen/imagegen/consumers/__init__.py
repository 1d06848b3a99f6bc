"""SQS in: what every consumer of a queue does with its messages. Imports use cases, formats and domain."""
