"""Measures how well the router recognises hard requests, using public tables of answers."""
