"""Who may be answered by what: where data may go, and which models a tenant may use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moyin.errors import InvalidRequest

__all__ = ["ANY_TENANT", "UNRESTRICTED", "Policy", "RequestPreferences", "parse_preferences"]

_RESIDENCY = b"x-moyin-residency"
_TIMEOUT = b"x-moyin-timeout"
_CACHE_CONTROL = b"cache-control"
_TRACEPARENT = b"traceparent"
_QUALITY = b"x-moyin-quality"
_BAD_ANSWER = b"x-moyin-usd-per-bad-answer"
_READ = frozenset({_RESIDENCY, _TIMEOUT, _CACHE_CONTROL, _TRACEPARENT, _QUALITY, _BAD_ANSWER})


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What one tenant may use.

    Attributes:
        residency: where its data may go; None: anywhere.
        names: the aliases and models that it may ask for; None: all.
        usd_per_bad_answer: cost of a useless answer, where an alias names none; None: as
            everywhere.
        is_judged: a judge may look at a share of its answers, where the operator has one.
    """

    residency: frozenset[str] | None = None
    names: frozenset[str] | None = None
    usd_per_bad_answer: float | None = None
    is_judged: bool = True


UNRESTRICTED = Policy()
# The tenant that stands for all that are not named.
ANY_TENANT = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestPreferences:
    """What a client asks for in headers. They narrow what the configuration allows, never widen it.

    Attributes:
        residency: places where the data may go, sorted; None: wherever is allowed.
        timeout: seconds that the client gives the whole call; None: as long as is allowed.
        bypass_cache: no answer from the cache.
        traceparent: the client's trace, as W3C writes it; None: it has none.
        quality: lowest probability of a good answer that the client accepts; 0: any.
        usd_per_bad_answer: cost of a useless answer; None: as configured.
    """

    residency: tuple[str, ...] | None = None
    timeout: float | None = None
    bypass_cache: bool = False
    traceparent: bytes | None = None
    quality: float = 0.0
    usd_per_bad_answer: float | None = None


_NONE = RequestPreferences()


def parse_preferences(
    headers: Iterable[tuple[bytes, bytes]],
    residencies: frozenset[str],
    max_usd_per_bad_answer: float = math.inf,
) -> RequestPreferences:
    """The wishes in a client's headers.

    Args:
        headers: as ASGI gives them, names in lower case.
        residencies: of all back ends.
        max_usd_per_bad_answer: the highest that a client may name.

    Raises:
        InvalidRequest: names the header.
    """
    found = {name: value for name, value in headers if name in _READ}
    if not found:
        return _NONE
    residency, timeout = found.get(_RESIDENCY), found.get(_TIMEOUT)
    quality, bad_answer = found.get(_QUALITY), found.get(_BAD_ANSWER)
    control = found.get(_CACHE_CONTROL, b"").lower()
    return RequestPreferences(
        residency=None if residency is None else _residency(residency, residencies),
        timeout=None if timeout is None else _timeout(timeout),
        bypass_cache=b"no-cache" in control or b"no-store" in control,
        traceparent=found.get(_TRACEPARENT),
        quality=0.0 if quality is None else _number(_QUALITY, quality, 1.0),
        usd_per_bad_answer=None
        if bad_answer is None
        else _number(_BAD_ANSWER, bad_answer, max_usd_per_bad_answer),
    )


def _number(header: bytes, value: bytes, maximum: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    # Comparisons with NaN are false; infinity is no price, even where the operator sets no limit.
    if not 0 <= number <= maximum or number == math.inf:
        limit = "of at least 0" if maximum == math.inf else f"between 0 and {maximum:g}"
        raise InvalidRequest(f"must be a number {limit}", field=header.decode())
    return number


def _residency(value: bytes, residencies: frozenset[str]) -> tuple[str, ...]:
    asked = {place.strip() for place in value.decode("latin-1").split(",")}
    if unknown := sorted(asked - residencies):
        known = ", ".join(sorted(residencies))
        raise InvalidRequest(
            f"no back end is in {unknown[0]!r}; there are: {known}",
            field=_RESIDENCY.decode(),
        )
    return tuple(sorted(asked))


def _timeout(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequest("must be a number of seconds above 0", field=_TIMEOUT.decode())
    return seconds
