"""Implements the gatekeeper: the ASGI middleware in front of every app.

The middleware assigns request ids, authenticates callers, limits request bodies, renders errors,
and writes the access log and metrics.
"""

from moyin.access.gatekeeper.context import RequestContext, context
from moyin.access.gatekeeper.identity import (
    Authenticator,
    KeyAuthenticator,
    create_authenticator,
    create_service_token,
    create_service_token_factory,
)
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.http.problems import (
    SECURITY_HEADERS,
    ErrorBody,
    ErrorRenderer,
    get_http_status,
    render_problem_details,
)

__all__ = [
    "SECURITY_HEADERS",
    "Authenticator",
    "ErrorBody",
    "ErrorRenderer",
    "Gatekeeper",
    "KeyAuthenticator",
    "RequestContext",
    "context",
    "create_authenticator",
    "create_service_token",
    "create_service_token_factory",
    "get_http_status",
    "render_problem_details",
]
