"""Implements the gatekeeper: the ASGI middleware in front of every app.

The middleware assigns request ids, authenticates callers, limits request bodies, renders errors,
and writes the access log and metrics. `Gatekeeper` is in `middleware`, authentication in `identity`:
neither is imported here, because processes that only render errors need neither.
"""

from moyin.access.gatekeeper.context import RequestContext, context
from moyin.http.problems import (
    SECURITY_HEADERS,
    ErrorBody,
    ErrorRenderer,
    get_http_status,
    render_problem_details,
)

__all__ = [
    "SECURITY_HEADERS",
    "ErrorBody",
    "ErrorRenderer",
    "RequestContext",
    "context",
    "get_http_status",
    "render_problem_details",
]
