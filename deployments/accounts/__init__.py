"""Serves players, members, organisations, keys and limits at ``/accounts``."""
