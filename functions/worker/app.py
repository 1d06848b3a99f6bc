"""SQS: one message, one generation."""

from imagegen.bootstrap.worker import handle as lambda_handler
from imagegen.bootstrap.worker import handle_dead_letters as dead_letter_handler

__all__ = ["dead_letter_handler", "lambda_handler"]
