"""A judge on a share of traffic: what it compares, what that may cost, and what its verdicts teach."""
