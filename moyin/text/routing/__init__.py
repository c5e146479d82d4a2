"""Chooses the back end for a text request by ability, health and expected cost, and calls it."""
