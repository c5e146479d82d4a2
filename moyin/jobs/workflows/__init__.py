"""Runs jobs with Temporal. No other package of `moyin` may import Temporal's SDK."""
