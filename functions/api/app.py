"""The HTTP API behind API Gateway."""

from imagegen.bootstrap.api import handle as lambda_handler

__all__ = ["lambda_handler"]
