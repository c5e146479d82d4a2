"""Moyin: one door for a studio's AI work. The library: plain Python, no Ray, no Temporal."""

__version__ = "0.1.0"
