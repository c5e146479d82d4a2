"""Estimates how likely a model answers a request well, and learns from signals.

Everything here is plain arithmetic on its arguments; docs/quality.md has the formulas.
"""
