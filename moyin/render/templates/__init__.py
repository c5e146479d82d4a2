"""Reads templates, graphs with typed inputs, from files."""
