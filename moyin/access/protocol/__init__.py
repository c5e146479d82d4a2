"""Defines the JSON of the accounts API and translates the domain to it."""
