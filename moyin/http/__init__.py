"""Provides HTTP building blocks that know nothing of the product, such as server-sent events."""
