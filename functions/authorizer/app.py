"""API Gateway's authorizer: bearer credential → caller."""

from imagegen.bootstrap.authorizer import handle as lambda_handler

__all__ = ["lambda_handler"]
