"""Converts graphs from the format that ComfyUI's editor saves to ComfyUI's API format."""
