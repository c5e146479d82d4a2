"""Decides the order of renders, the renderer for each, and how many renderers a pool needs."""
