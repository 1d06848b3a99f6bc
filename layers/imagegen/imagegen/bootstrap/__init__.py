"""The only place that wires, one module for each function. Everything is built on first use and kept."""

import logging

import aws_lambda_powertools  # noqa: F401  # first: with POWERTOOLS_DEBUG its import sets the level of its logger

# At some level each of these writes secrets: presigned URLs, the SDK's requests and answers, image ids.
for _library in ("aws_lambda_powertools", "boto3", "botocore", "urllib3"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)
