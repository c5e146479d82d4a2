"""Reads templates, which are graphs with typed inputs, from files."""
