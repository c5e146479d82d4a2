"""Measures calls of a model: through Moyin, through a minimal forwarder, and without a gateway."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.farm import Farm
from benchmarks.load import Measurement, measure_load
from benchmarks.processes import find_free_port, running_program, wait_for_port

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
def running_peer_servers() -> Iterator[PeerServers]:
    """Run the servers of `PeerServers` as processes during the block."""
    mock_port, forwarder_port, service_port = find_free_port(), find_free_port(), find_free_port()
    mock_url, forwarder_url = f"http://127.0.0.1:{mock_port}", f"http://127.0.0.1:{forwarder_port}"
    uvicorn_arguments = ["uvicorn", "benchmarks.forwarder:app", "--port", str(forwarder_port)]
    with ExitStack() as stack:
        pid = stack.enter_context(running_module(["benchmarks.mock", str(mock_port)]))
        stack.enter_context(
            running_module([*uvicorn_arguments, "--log-level", "warning"], {"UPSTREAM": mock_url})
        )
        stack.enter_context(running_module(["benchmarks.proxied", "service", str(service_port)]))
        for port in (mock_port, forwarder_port, service_port):
            wait_for_port(port)
        yield PeerServers(
            mock=mock_url,
            mock_pid=pid,
            forwarder=forwarder_url,
            service=f"http://127.0.0.1:{service_port}",
        )


def measure_text(
    farm: Farm, peer_servers: PeerServers, *, connections: int = 16
) -> dict[str, Measurement]:
    """Measure all servers in turns, and return the medians of several rounds by server."""
    urls = {
        "mock": peer_servers.mock,
        "forwarder": peer_servers.forwarder,
        "forwarder in Serve": f"{farm.url}/bare",
        "moyin": farm.url,
    }
    measurements_by_server: dict[str, list[Measurement]] = {name: [] for name in urls}
    for _ in range(_ROUNDS):
        for name, url in urls.items():
            measurements_by_server[name].append(
                measure_load(
                    f"{url}/v1/chat/completions",
                    body=BODY,
                    key=farm.key,
                    connections=connections,
                    seconds=_SECONDS,
                )
            )
    return {
        name: combine_measurements(measurements)
        for name, measurements in measurements_by_server.items()
    }


def combine_measurements(measurements: list[Measurement]) -> Measurement:
    """Return one measurement: the median of each value, and the totals of requests and errors."""
    return Measurement(
        requests=sum(m.requests for m in measurements),
        requests_per_second=statistics.median(m.requests_per_second for m in measurements),
        p50_ms=statistics.median(m.p50_ms for m in measurements),
        p99_ms=statistics.median(m.p99_ms for m in measurements),
        errors=sum(m.errors for m in measurements),
    )


@contextmanager
def running_module(module: list[str], environ: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run ``python -m`` with ``module`` as arguments during the block; yield the process id.

    Args:
        environ: environment variables in addition to those of this process.
    """
    with running_program([sys.executable, "-m", *module], environ) as pid:
        yield pid
