"""The protocols of upstreams: each turns a request into calls, and answers into images or failures."""
