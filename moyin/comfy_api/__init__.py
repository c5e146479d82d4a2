"""Presents all renderers of the farm as one ComfyUI server: prompts, history, files, and events.

Prompts become jobs, and events of jobs become ComfyUI's messages. The package calls renderers only
to read their nodes and models. Start reading at `prompts.py`.
"""
