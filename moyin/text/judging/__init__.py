"""Evaluates a share of the answers with a judge model and learns from its verdicts."""
