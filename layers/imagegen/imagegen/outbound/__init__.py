"""Every outgoing HTTP call that is not AWS's: the pool, the guard for untrusted URLs, downloads, issuer keys."""
