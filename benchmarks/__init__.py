"""Contains `make bench`: it measures Moyin and its peers on one machine; only ratios are comparable."""
