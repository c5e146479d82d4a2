"""Runs jobs with Temporal; the only package of moyin that imports Temporal's SDK."""
