"""Authenticates callers, authorizes requests and enforces limits.

The package `gatekeeper` does so for each request; start reading at its `middleware.py`. The package
`accounts` administers users, organisations and API keys.
"""
