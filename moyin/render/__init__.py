"""Runs ComfyUI processes, speaks their protocol, orders renders and reads graph templates.

The Ray actors in `actors` run the ComfyUI processes. The pools in `deployments.render` pull renders
from Temporal and assign them to the actors. Start reading at `comfyui/renderer.py`.
"""
