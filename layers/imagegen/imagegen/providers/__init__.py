"""Speaks the protocols of upstreams, one package for each, and lists their models.

The package of a protocol defines its models, their fields and limits as data.
"""
