"""Access: authentication, authorization and limits of callers.

The gatekeeper checks the identity, scopes and limits of each request. Accounts administers people,
organisations and keys. Neither of them reads the body of a request for text or pictures. Start
reading at `gatekeeper/middleware.py`.
"""
