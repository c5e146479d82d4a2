"""The app ``accounts``: players, members, organisations, keys and limits, behind ``/accounts``."""
