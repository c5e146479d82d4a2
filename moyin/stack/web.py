"""Makes small blocking HTTP requests to the stack's own servers, never through a proxy."""

from __future__ import annotations

import urllib.error
import urllib.request

__all__ = ["send_request"]

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def send_request(
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    bearer: str = "",
    timeout: float = 5.0,
) -> tuple[int, bytes]:
    """Send an HTTP request without a proxy, and return the status and body (blocking).

    If there is no response, the status is 0 and the body contains the reason.
    """
    request = urllib.request.Request(url, data=body, method=method)
    if body is not None:
        request.add_header("content-type", "application/json")
    if bearer:
        request.add_header("authorization", f"Bearer {bearer}")
    try:
        with _opener.open(request, timeout=timeout) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()
