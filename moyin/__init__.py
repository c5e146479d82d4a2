"""The library of Moyin, a gateway for a studio's AI work; the Ray deployments build on it."""

__version__ = "0.1.0"
