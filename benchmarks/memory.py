"""What a gateway holds in memory after many requests."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gateways import Gateway
from benchmarks.load import measure
from benchmarks.processes import resident
from benchmarks.text import BODY

__all__ = ["Growth", "growth"]

_STEP_SECONDS = 5
_WARM_UP = 2_000


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Bytes that the answering processes held, by requests answered since they were warm."""

    requests: tuple[int, ...]
    bytes: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.bytes[-1] / self.bytes[0]


def growth(gateway: Gateway, requests: int, seconds: float) -> Growth:
    """Ask for ``requests``, or for as many as it answers in ``seconds``."""
    while _load(gateway) < _WARM_UP and seconds > _STEP_SECONDS:
        seconds -= _STEP_SECONDS
    counts, sizes = [0], [resident(gateway.processes())]
    while counts[-1] < requests and seconds > 0:
        counts.append(counts[-1] + _load(gateway))
        sizes.append(resident(gateway.processes()))
        seconds -= _STEP_SECONDS
    return Growth(requests=tuple(counts), bytes=tuple(sizes))


def _load(gateway: Gateway) -> int:
    found = measure(gateway.url, body=BODY, headers=gateway.headers, seconds=_STEP_SECONDS)
    return int(found.requests_per_second * _STEP_SECONDS)
