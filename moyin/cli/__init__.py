"""Implements the ``moyin`` command line, one module per command or group."""
