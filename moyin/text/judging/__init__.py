"""Lets a judge model compare a share of the answers with second answers, to learn from it."""
