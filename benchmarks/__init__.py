"""Benchmarks of Moyin and its peers on one machine (`make bench`); only ratios are comparable."""
