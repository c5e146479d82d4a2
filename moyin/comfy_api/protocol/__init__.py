"""ComfyUI's wire format. See https://docs.comfy.org/development/comfyui-server/comms_routes."""
