"""The pages behind API Gateway: the playground and the API's description, open to all."""

from pathlib import Path

from imagegen.bootstrap.site import handler

lambda_handler = handler(Path(__file__).parent)
