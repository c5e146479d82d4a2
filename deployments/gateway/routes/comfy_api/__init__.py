"""Holds the routes that speak ComfyUI's own API and the Comfy API v2; logic: `moyin/comfy_api`."""
