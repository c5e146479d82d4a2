"""Accounts without a web framework: people, organisations, sessions, keys, sign-in."""
