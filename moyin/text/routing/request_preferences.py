"""Holds what a tenant may use, and what a client asks for in request headers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moyin.errors import InvalidRequest

__all__ = ["RequestPreferences", "parse_preferences"]

_RESIDENCY = b"x-moyin-residency"
_TIMEOUT = b"x-moyin-timeout"
_CACHE_CONTROL = b"cache-control"
_TRACEPARENT = b"traceparent"
_QUALITY = b"x-moyin-quality"
_BAD_ANSWER = b"x-moyin-usd-per-bad-answer"
_HEADERS = frozenset({_RESIDENCY, _TIMEOUT, _CACHE_CONTROL, _TRACEPARENT, _QUALITY, _BAD_ANSWER})


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestPreferences:
    """Holds a client's preferences from request headers.

    They narrow what the configuration allows and never widen it.

    Attributes:
        residency: places where the data may go, sorted; None: wherever it is allowed.
        timeout: seconds for the whole call; None: as long as is allowed.
        bypass_cache: the answer must not come from the cache.
        traceparent: the client's trace context in W3C format; None: it has none.
        quality: lowest probability of a good answer that the client accepts; 0: any.
        usd_per_bad_answer: cost of a useless answer; None: as configured.
    """

    residency: tuple[str, ...] | None = None
    timeout: float | None = None
    bypass_cache: bool = False
    traceparent: bytes | None = None
    quality: float = 0.0
    usd_per_bad_answer: float | None = None


_NO_PREFERENCES = RequestPreferences()


def parse_preferences(
    headers: Iterable[tuple[bytes, bytes]],
    residencies: frozenset[str],
    max_usd_per_bad_answer: float = math.inf,
) -> RequestPreferences:
    """Read the preferences from a client's headers.

    Args:
        headers: as ASGI gives them, names in lower case.
        residencies: of all back ends.
        max_usd_per_bad_answer: the highest cost that a client may set.

    Raises:
        InvalidRequest: names the header.
    """
    values = {name: value for name, value in headers if name in _HEADERS}
    if not values:
        return _NO_PREFERENCES
    residency, timeout = values.get(_RESIDENCY), values.get(_TIMEOUT)
    quality, usd_per_bad_answer = values.get(_QUALITY), values.get(_BAD_ANSWER)
    control = values.get(_CACHE_CONTROL, b"").lower()
    return RequestPreferences(
        residency=None if residency is None else _parse_residency(residency, residencies),
        timeout=None if timeout is None else _parse_timeout(timeout),
        bypass_cache=b"no-cache" in control or b"no-store" in control,
        traceparent=values.get(_TRACEPARENT),
        quality=0.0 if quality is None else _parse_number(_QUALITY, quality, 1.0),
        usd_per_bad_answer=None
        if usd_per_bad_answer is None
        else _parse_number(_BAD_ANSWER, usd_per_bad_answer, max_usd_per_bad_answer),
    )


def _parse_number(header: bytes, value: bytes, maximum: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    # Comparisons with NaN are false; infinity is no price, even where the operator sets no limit.
    if not 0 <= number <= maximum or number == math.inf:
        limit = "of at least 0" if maximum == math.inf else f"between 0 and {maximum:g}"
        raise InvalidRequest(f"must be a number {limit}", field=header.decode())
    return number


def _parse_residency(value: bytes, residencies: frozenset[str]) -> tuple[str, ...]:
    requested = {residency.strip() for residency in value.decode("latin-1").split(",")}
    if unknown := sorted(requested - residencies):
        available = ", ".join(sorted(residencies))
        raise InvalidRequest(
            f"no back end is in {unknown[0]!r}; use one or more of: {available}",
            field=_RESIDENCY.decode(),
        )
    return tuple(sorted(requested))


def _parse_timeout(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequest("must be a number of seconds above 0", field=_TIMEOUT.decode())
    return seconds
