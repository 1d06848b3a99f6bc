"""Requests as events and files: each SQS message is an event, a file in the inbox, or a batch to continue."""

from imagegen.bootstrap.intake import handle as lambda_handler

__all__ = ["lambda_handler"]
