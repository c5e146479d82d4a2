"""Runs jobs with Temporal, whose SDK no other package of moyin imports."""
