"""Defines the limits of AWS that more than one module uses, each with its source."""

# "Payload size for synchronous invocations: 6 MB each for request and response" (Lambda developer guide, "Lambda
# quotas"). Measured to the byte: the request is limited to 6 MiB, the response to 100 bytes more.
LAMBDA_REQUEST_BYTES = 6_291_456
LAMBDA_RESPONSE_BYTES = 6_291_556

# "Response streaming for Lambda functions" (Lambda developer guide): 200 MB.
LAMBDA_STREAM_BYTES = 200 * 1024 * 1024
