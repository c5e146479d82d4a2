"""Parses the preferences for routing that a client sends in request headers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moyin.errors import InvalidRequest

_RESIDENCY = b"x-moyin-residency"
_TIMEOUT = b"x-moyin-timeout"
_CACHE_CONTROL = b"cache-control"
_TRACEPARENT = b"traceparent"
_QUALITY = b"x-moyin-quality"
_USD_PER_BAD_ANSWER = b"x-moyin-usd-per-bad-answer"
_HEADERS = frozenset(
    {_RESIDENCY, _TIMEOUT, _CACHE_CONTROL, _TRACEPARENT, _QUALITY, _USD_PER_BAD_ANSWER}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestPreferences:
    """Preferences of one request, which further restrict the choice that the configuration allows.

    Attributes:
        residency: places where the data may be processed, sorted; None for all allowed places.
        timeout: maximum seconds of the request; None for the configured maximum.
        bypass_cache: True if the answer must not come from the answer cache.
        traceparent: the client's trace context in W3C format; None if it sent none.
        quality: minimum probability of a good answer; 0 accepts any.
        usd_per_bad_answer: cost of a useless answer; None for the configured cost.
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
    """Parse the preferences in a client's request headers.

    Args:
        headers: the request headers in ASGI's format.
        residencies: all places where back ends process data.
        max_usd_per_bad_answer: maximum cost of a useless answer that a client may set.

    Raises:
        InvalidRequest: a value is invalid; ``field`` is the name of the header.
    """
    header_values = {name: value for name, value in headers if name in _HEADERS}
    if not header_values:
        return _NO_PREFERENCES
    residency, timeout = header_values.get(_RESIDENCY), header_values.get(_TIMEOUT)
    quality, usd_per_bad_answer = (
        header_values.get(_QUALITY),
        header_values.get(_USD_PER_BAD_ANSWER),
    )
    cache_control = header_values.get(_CACHE_CONTROL, b"").lower()
    return RequestPreferences(
        residency=None if residency is None else _parse_residency(residency, residencies),
        timeout=None if timeout is None else _parse_timeout(timeout),
        bypass_cache=b"no-cache" in cache_control or b"no-store" in cache_control,
        traceparent=header_values.get(_TRACEPARENT),
        quality=0.0 if quality is None else _parse_number(_QUALITY, quality, 1.0),
        usd_per_bad_answer=None
        if usd_per_bad_answer is None
        else _parse_number(_USD_PER_BAD_ANSWER, usd_per_bad_answer, max_usd_per_bad_answer),
    )


def _parse_number(header: bytes, value: bytes, maximum: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    # A comparison with NaN is false. Infinity is invalid even if the operator sets no maximum.
    if not 0 <= number <= maximum or number == math.inf:
        allowed_range = "of at least 0" if maximum == math.inf else f"between 0 and {maximum:g}"
        raise InvalidRequest(
            f"{header.decode()}: must be a number {allowed_range}", field=header.decode()
        )
    return number


def _parse_residency(value: bytes, residencies: frozenset[str]) -> tuple[str, ...]:
    requested_places = {residency.strip() for residency in value.decode("latin-1").split(",")}
    if unknown_places := sorted(requested_places - residencies):
        available_places = ", ".join(sorted(residencies))
        raise InvalidRequest(
            f"{_RESIDENCY.decode()}: no back end processes data in {unknown_places[0]!r}; use one or "
            f"more of: {available_places}",
            field=_RESIDENCY.decode(),
        )
    return tuple(sorted(requested_places))


def _parse_timeout(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        name = _TIMEOUT.decode()
        raise InvalidRequest(f"{name}: must be a number of seconds above 0", field=name)
    return seconds
