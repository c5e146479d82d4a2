"""Installs, confines and runs ComfyUI processes, and renders with them."""
