"""How likely a model's answer to a request is good: abilities, difficulties, and what signals teach.

Everything here is plain arithmetic on values that are passed in; docs/quality.md has the formulas.
"""
