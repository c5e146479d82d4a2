"""Measures how a gateway's memory grows with the number of requests."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gateways import Gateway
from benchmarks.load import measure
from benchmarks.processes import resident
from benchmarks.text import BODY

_STEP_SECONDS = 5
_WARM_UP = 2_000


@dataclass(frozen=True, kw_only=True)
class MemoryGrowth:
    """The memory of a gateway's processes, measured repeatedly during the load.

    Attributes:
        requests: the number of requests after the warm-up, at each measurement.
        bytes: the memory at each measurement.
    """

    requests: tuple[int, ...]
    bytes: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """The memory at the last measurement divided by that at the first."""
        return self.bytes[-1] / self.bytes[0]


def growth(gateway: Gateway, requests: int, seconds: float) -> MemoryGrowth:
    """Send up to ``requests`` requests in at most ``seconds``; return the growth of memory."""
    while _measure_load(gateway) < _WARM_UP and seconds > _STEP_SECONDS:
        seconds -= _STEP_SECONDS
    counts, sizes = [0], [resident(gateway.processes())]
    while counts[-1] < requests and seconds > 0:
        counts.append(counts[-1] + _measure_load(gateway))
        sizes.append(resident(gateway.processes()))
        seconds -= _STEP_SECONDS
    return MemoryGrowth(requests=tuple(counts), bytes=tuple(sizes))


def _measure_load(gateway: Gateway) -> int:
    body = gateway.address(BODY)
    load = measure(gateway.url, body=body, headers=gateway.headers, seconds=_STEP_SECONDS)
    return load.requests
