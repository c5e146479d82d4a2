"""Provides HTTP building blocks that are independent of the product, such as server-sent events."""
