"""Manages people, organisations, sessions, keys and sign-in, without a web framework."""
