"""Renders: one ComfyUI process, its sandbox, its files, and the order of the work.

This wing runs and supervises ComfyUI, speaks its engine's wire, decides which render comes next and
reads graph templates. It never knows about Ray or Temporal (`actors` and `deployments/render` do),
and never answers a client. Start reading at `comfyui/renderer.py`.
"""
