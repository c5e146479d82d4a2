"""Defines ComfyUI's wire format: https://docs.comfy.org/development/comfyui-server/comms_routes."""
