"""Decodes and encodes images. Alone imports Pillow, which only the worker function carries."""
