"""Measures how well the router recognises hard requests, with public tables of answers."""
