"""Decodes and encodes images. The only package that imports Pillow, which only the worker function has."""
