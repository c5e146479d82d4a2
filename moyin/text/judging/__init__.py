"""Lets a judge model compare sampled answers with a second model's, and learns from its grades."""
