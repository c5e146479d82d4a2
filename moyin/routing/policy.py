"""Who may be answered by what: where data may go, and which models a tenant may use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moyin.errors import InvalidRequest

__all__ = ["ANYTHING", "EVERYBODY", "Policy", "Wishes", "wishes_of"]

_RESIDENCY = b"x-moyin-residency"
_TIMEOUT = b"x-moyin-timeout"
_CACHE_CONTROL = b"cache-control"
_TRACEPARENT = b"traceparent"
_READ = frozenset({_RESIDENCY, _TIMEOUT, _CACHE_CONTROL, _TRACEPARENT})


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What one tenant may use.

    Attributes:
        residency: where its data may go; None: anywhere.
        names: the aliases and models that it may ask for; None: all.
    """

    residency: frozenset[str] | None = None
    names: frozenset[str] | None = None


ANYTHING = Policy()
# The tenant that stands for all that are not named.
EVERYBODY = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What a client asks for in headers. They narrow what the configuration allows, never widen it.

    Attributes:
        residency: places where the data may go, sorted; None: wherever is allowed.
        timeout: seconds that the client gives the whole call; None: as long as is allowed.
        fresh: no answer from the cache.
        traceparent: the client's trace, as W3C writes it; None: it has none.
    """

    residency: tuple[str, ...] | None = None
    timeout: float | None = None
    fresh: bool = False
    traceparent: bytes | None = None


_NONE = Wishes()


def wishes_of(headers: Iterable[tuple[bytes, bytes]], places: frozenset[str]) -> Wishes:
    """The wishes in a client's headers.

    Args:
        headers: as ASGI gives them, names in lower case.
        places: of all back ends.

    Raises:
        InvalidRequest: names the header.
    """
    found = {name: value for name, value in headers if name in _READ}
    if not found:
        return _NONE
    residency, timeout = found.get(_RESIDENCY), found.get(_TIMEOUT)
    control = found.get(_CACHE_CONTROL, b"").lower()
    return Wishes(
        residency=None if residency is None else _residency(residency, places),
        timeout=None if timeout is None else _timeout(timeout),
        fresh=b"no-cache" in control or b"no-store" in control,
        traceparent=found.get(_TRACEPARENT),
    )


def _residency(value: bytes, places: frozenset[str]) -> tuple[str, ...]:
    asked = {place.strip() for place in value.decode("latin-1").split(",")}
    if unknown := sorted(asked - places):
        known = ", ".join(sorted(places))
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
