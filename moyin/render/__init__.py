"""Runs ComfyUI processes, speaks their protocol, orders renders and reads graph templates.

The packages `actors` and `deployments.render` connect this one with Ray and Temporal; the gateway
responds to clients. Start reading at `comfyui/renderer.py`.
"""
