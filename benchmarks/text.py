"""Measures model calls through Moyin's ``/v1``, a minimal forwarder, and without a gateway."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.farm import Farm
from benchmarks.load import Measurement, measure
from benchmarks.processes import free_port, running_program, wait_for

__all__ = ["BODY", "PeerServers", "free_port", "median", "peers", "process", "text", "wait_for"]

BODY = {"model": "mock", "messages": [{"role": "user", "content": "Say something about foxes."}]}
_ROUNDS = 5
_SECONDS = 4


@dataclass(frozen=True, kw_only=True)
class PeerServers:
    """The URLs of the servers that are measured beside Moyin.

    Attributes:
        mock: a fast model server with constant answers, to which the others forward.
        forwarder: a minimal gateway.
        service: a service for the reverse proxy.
    """

    mock: str
    mock_pid: int
    forwarder: str
    service: str


@contextmanager
def peers() -> Iterator[PeerServers]:
    """Run the mock, forwarder and service of `PeerServers` as processes during the block."""
    mock_port, forwarder, service = free_port(), free_port(), free_port()
    mock_url, forwarder_url = f"http://127.0.0.1:{mock_port}", f"http://127.0.0.1:{forwarder}"
    uvicorn = ["uvicorn", "benchmarks.forwarder:app", "--port", str(forwarder)]
    with ExitStack() as stack:
        pid = stack.enter_context(process(["benchmarks.mock", str(mock_port)]))
        stack.enter_context(process([*uvicorn, "--log-level", "warning"], {"UPSTREAM": mock_url}))
        stack.enter_context(process(["benchmarks.proxied", "service", str(service)]))
        for port in (mock_port, forwarder, service):
            wait_for(port)
        yield PeerServers(
            mock=mock_url,
            mock_pid=pid,
            forwarder=forwarder_url,
            service=f"http://127.0.0.1:{service}",
        )


def text(farm: Farm, peer_servers: PeerServers, *, connections: int = 16) -> dict[str, Measurement]:
    """Measure all servers in turns, and return the medians of several rounds by server."""
    urls = {
        "mock": peer_servers.mock,
        "forwarder": peer_servers.forwarder,
        "forwarder in Serve": f"{farm.url}/bare",
        "moyin": farm.url,
    }
    rounds: dict[str, list[Measurement]] = {name: [] for name in urls}
    for _ in range(_ROUNDS):
        for name, url in urls.items():
            rounds[name].append(
                measure(
                    f"{url}/v1/chat/completions",
                    body=BODY,
                    key=farm.key,
                    connections=connections,
                    seconds=_SECONDS,
                )
            )
    return {name: median(measurements) for name, measurements in rounds.items()}


def median(measurements: list[Measurement]) -> Measurement:
    """Return one measurement: the median of each value, and the totals of requests and errors."""
    return Measurement(
        requests=sum(m.requests for m in measurements),
        requests_per_second=statistics.median(m.requests_per_second for m in measurements),
        p50_ms=statistics.median(m.p50_ms for m in measurements),
        p99_ms=statistics.median(m.p99_ms for m in measurements),
        errors=sum(m.errors for m in measurements),
    )


@contextmanager
def process(module: list[str], environ: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run ``python -m`` with ``module`` as arguments during the block; yield the process id."""
    with running_program([sys.executable, "-m", *module], environ) as pid:
        yield pid
