"""Runs batches of text requests: reads input files, calls a model for each line, writes results."""
