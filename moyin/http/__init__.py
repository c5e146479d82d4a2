"""Holds the HTTP building blocks that every wing uses.

These are bounded bodies, client sessions, server-sent events, problem details, validation, the
circuit breaker and the check for public addresses. They contain no policy of the product.
"""
