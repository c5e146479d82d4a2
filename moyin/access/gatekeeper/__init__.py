"""The gatekeeper: the ASGI middleware that every app wears.

Request id, identity, body limit, error bodies, access log and metrics; no hop, no framework.
"""

from moyin.access.gatekeeper.context import RequestContext, context
from moyin.access.gatekeeper.identity import (
    Authenticator,
    KeyAuthenticator,
    acting_for,
    mint_token,
    new_authenticator,
)
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.http.problems import (
    SECURITY_HEADERS,
    ErrorBody,
    ErrorRenderer,
    problem_details,
    status_of,
)

__all__ = [
    "SECURITY_HEADERS",
    "Authenticator",
    "ErrorBody",
    "ErrorRenderer",
    "Gatekeeper",
    "KeyAuthenticator",
    "RequestContext",
    "acting_for",
    "context",
    "mint_token",
    "new_authenticator",
    "problem_details",
    "status_of",
]
