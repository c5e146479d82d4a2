"""The Comfy API v2, as the official SDK `comfy-sdk` speaks it."""
