"""Access: who calls, what the caller may do, and how much of it.

The gatekeeper verifies each request: identity, scopes, limits. Accounts administers people,
organisations and keys. Neither ever looks into the body of a request for text or pictures. Start
reading at `gatekeeper/middleware.py`.
"""
