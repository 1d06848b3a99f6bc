"""HTTP in: a Powertools Router for each resource, and the middleware that holds for all of them.

A route parses, calls one use case and renders. Imports use cases, formats, ports and domain.
"""
