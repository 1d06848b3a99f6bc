"""SQS in: one handler for every queue, and what each queue does with a message.

Imports use cases, formats, ports and domain.
"""
