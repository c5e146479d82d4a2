"""Provides fakes for tests. No code outside of tests and benchmarks imports this package."""
