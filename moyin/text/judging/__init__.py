"""Lets a judge model grade sampled answers against second answers, and learns from the grades."""
