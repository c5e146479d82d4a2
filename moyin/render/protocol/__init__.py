"""ComfyUI's graphs and the messages of its engine."""
