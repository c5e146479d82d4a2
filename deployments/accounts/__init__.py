"""Contains the app at ``/accounts``, which administers players, organisations, keys and limits."""
