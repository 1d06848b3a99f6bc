"""Makes all HTTP calls except those of the AWS SDK: the pool, the guard of untrusted URLs, downloads, issuer keys."""
