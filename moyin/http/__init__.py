"""HTTP building blocks that every wing uses.

Bodies with a bound, client sessions, server-sent events, errors as problem details, validation, the
circuit breaker of an upstream, and the check for public addresses. It holds no policy of the product.
"""
