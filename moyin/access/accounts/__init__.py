"""Implements sign-in, sessions, users, organisations and API keys, independent of a web framework."""
