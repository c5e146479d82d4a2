"""Reads and writes ComfyUI's graphs, messages and request bodies, without I/O."""
