"""Estimates how likely a model answers a request well, and learns from signals (docs/quality.md).

The package does no I/O, apart from loading the optional embedder.
"""
