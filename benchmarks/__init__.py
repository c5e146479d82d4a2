"""`make bench`: Moyin beside its peers, in one run on one machine. Ratios count, not figures."""
