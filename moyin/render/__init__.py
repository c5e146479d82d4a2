"""Runs ComfyUI processes, speaks their protocol, orders renders and reads graph templates.

The packages `actors` and `deployments.render` run this package on Ray and as Temporal workers; the
gateway responds to clients. Start reading at `comfyui/renderer.py`.
"""
