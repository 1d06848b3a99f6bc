"""The only place that wires, a module for each function. Everything is built on first use and kept with the process."""

import logging

# At some level or other each of these writes what is secret: presigned URLs, the SDK's requests and answers, image ids.
for _library in ("aws_lambda_powertools", "boto3", "botocore", "urllib3"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)
