"""Decides in which order renders run, and on which renderer."""
