"""Defines the wire format of the Comfy API v2, which Comfy's official SDK `comfy-sdk` uses."""
