"""Real ComfyUI processes: installing one, running one, rendering with it. Knows no Ray."""
