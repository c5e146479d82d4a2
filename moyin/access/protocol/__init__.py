"""Defines the JSON bodies of the accounts API, and converts domain objects to them."""
