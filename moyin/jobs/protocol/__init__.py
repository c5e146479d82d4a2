"""Implements the JSON format of the jobs API, and its translation to and from the domain."""
