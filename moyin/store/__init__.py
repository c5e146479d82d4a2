"""Stores each piece of state in one place: SQL, blobs or Valkey."""
