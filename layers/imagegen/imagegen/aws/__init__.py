"""Implements the ports on AWS, one module for each service or kind of record."""
