"""Benchmarks Moyin and other gateways on one machine (`make bench`); compare only the ratios.

Absolute figures depend on the machine.
"""
