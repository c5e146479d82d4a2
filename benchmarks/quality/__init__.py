"""Measures how well the router recognises hard requests, using public benchmark data sets."""
