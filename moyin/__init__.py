"""Holds the library of Moyin, a gateway for a studio's AI work; Ray's deployments are built from it."""

__version__ = "0.1.0"
