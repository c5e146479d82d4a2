"""Decides in which order renders run, on which renderer, and how many renderers a pool needs."""
