"""Runs batches of text requests: reads input files, calls models line by line, writes results."""
