"""Provides fakes for tests; only tests and benchmarks may import this package."""
