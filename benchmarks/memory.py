"""Measures how a gateway's memory grows with the number of requests."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gateways import Gateway
from benchmarks.load import measure_load
from benchmarks.processes import sum_resident_bytes
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


def measure_growth(gateway: Gateway, requests: int, seconds: float) -> MemoryGrowth:
    """Send up to ``requests`` requests in at most ``seconds``; return the growth of memory."""
    while _send_load(gateway) < _WARM_UP and seconds > _STEP_SECONDS:
        seconds -= _STEP_SECONDS
    request_counts, byte_sizes = [0], [sum_resident_bytes(gateway.processes())]
    while request_counts[-1] < requests and seconds > 0:
        request_counts.append(request_counts[-1] + _send_load(gateway))
        byte_sizes.append(sum_resident_bytes(gateway.processes()))
        seconds -= _STEP_SECONDS
    return MemoryGrowth(requests=tuple(request_counts), bytes=tuple(byte_sizes))


def _send_load(gateway: Gateway) -> int:
    body = gateway.adapt_body(BODY)
    measurement = measure_load(
        gateway.url, body=body, headers=gateway.headers, seconds=_STEP_SECONDS
    )
    return measurement.requests
