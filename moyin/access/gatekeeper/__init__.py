"""Wraps every app in ASGI middleware, without a network hop or a framework.

Assigns request ids, authenticates callers, limits bodies, renders errors, writes the access log and
metrics.
"""

from moyin.access.gatekeeper.context import RequestContext, context
from moyin.access.gatekeeper.identity import (
    Authenticator,
    KeyAuthenticator,
    mint_token,
    new_authenticator,
    service_token_factory,
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
    "get_http_status",
    "mint_token",
    "new_authenticator",
    "render_problem_details",
    "service_token_factory",
]
