"""Provides fakes for tests; nothing at run time imports it."""
