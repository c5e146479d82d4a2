"""Authenticates callers, authorizes requests and enforces limits.

The package `gatekeeper` handles each request; start reading at its `middleware.py`. The package
`accounts` administers users, organisations and API keys.
"""
