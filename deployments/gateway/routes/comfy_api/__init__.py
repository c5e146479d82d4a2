"""Defines the routes of ComfyUI's own API and of the Comfy API v2, which call `moyin/comfy_api`."""
