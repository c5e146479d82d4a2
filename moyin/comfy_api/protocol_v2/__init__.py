"""Holds the wire format of the Comfy API v2, which the official SDK `comfy-sdk` uses."""
