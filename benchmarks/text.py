"""Text through ``/v1`` beside a bare forwarder and the mock itself."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from benchmarks.farm import Farm
from benchmarks.load import Measurement, measure

__all__ = ["Peers", "peers", "text"]

_BODY = {"model": "mock", "messages": [{"role": "user", "content": "Say something about foxes."}]}
_ROUNDS = 5
_SECONDS = 4


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Addresses of what stands beside Moyin."""

    mock: str
    forwarder: str


@contextmanager
def peers() -> Iterator[Peers]:
    """The mock and the bare forwarder, each a process of its own."""
    mock, forwarder = _free_port(), _free_port()
    mock_url, forwarder_url = f"http://127.0.0.1:{mock}", f"http://127.0.0.1:{forwarder}"
    uvicorn = ["uvicorn", "benchmarks.forwarder:app", "--port", str(forwarder)]
    with ExitStack() as stack:
        stack.enter_context(_process(["benchmarks.mock", str(mock)]))
        stack.enter_context(_process([*uvicorn, "--log-level", "warning"], {"UPSTREAM": mock_url}))
        for port in (mock, forwarder):
            _wait_for(port)
        yield Peers(mock=mock_url, forwarder=forwarder_url)


def text(farm: Farm, others: Peers, *, connections: int = 16) -> dict[str, Measurement]:
    """Medians of several rounds in which everybody takes turns."""
    places = {
        "mock": others.mock,
        "forwarder": others.forwarder,
        "forwarder in Serve": f"{farm.url}/bare",
        "moyin": farm.url,
    }
    rounds: dict[str, list[Measurement]] = {name: [] for name in places}
    for _ in range(_ROUNDS):
        for name, url in places.items():
            rounds[name].append(
                measure(
                    f"{url}/v1/chat/completions",
                    body=_BODY,
                    key=farm.key,
                    connections=connections,
                    seconds=_SECONDS,
                )
            )
    return {name: _median(found) for name, found in rounds.items()}


def _median(found: list[Measurement]) -> Measurement:
    return Measurement(
        requests_per_second=statistics.median(m.requests_per_second for m in found),
        p50_ms=statistics.median(m.p50_ms for m in found),
        p99_ms=statistics.median(m.p99_ms for m in found),
        errors=sum(m.errors for m in found),
    )


@contextmanager
def _process(module: list[str], environ: Mapping[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", *module], env={**os.environ, **(environ or {})}
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")
