"""Presents all renderers of the farm as one ComfyUI server: prompts, history, files, and events.

Prompts become jobs, and job events become ComfyUI's messages. The package calls renderers only to
learn their nodes and models. Start with `prompts.py`.
"""
