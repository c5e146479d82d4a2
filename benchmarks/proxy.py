"""The gateway's reverse proxy beside nginx and the bare service, in one run.

    python -m benchmarks.proxy

Requests come from wrk, 16 at a time, at a service that costs next to nothing; then a thousand
WebSockets and a thousand event streams are held open at once. nginx has one worker and keeps
connections to the service, as the proxy does in its one process. The proxy also checks a key and
signs an identity for every request. The bare forwarder is the least that Python and aiohttp do.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp

from benchmarks.load import Measurement, measure
from benchmarks.processes import free_port, running_program, wait_for
from benchmarks.proxied import KEY
from benchmarks.text import BODY, median, process

_ROUNDS = 3
_SECONDS = 4
_OPEN = 1_000
_MESSAGES = 5
_NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream mock {{ server 127.0.0.1:{mock}; keepalive 64; }}
  upstream service {{ server 127.0.0.1:{service}; keepalive 64; }}
  map $http_upgrade $upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_buffering off;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgrade;
    location / {{ proxy_pass http://mock; }}
    location = /events {{ proxy_pass http://service; }}
    location = /socket {{ proxy_pass http://service; }}
  }}
}}
"""


def requests(places: dict[str, str]) -> dict[str, Measurement]:
    """Medians of rounds in which everybody takes turns."""
    rounds: dict[str, list[Measurement]] = {name: [] for name in places}
    for _ in range(_ROUNDS):
        for name, url in places.items():
            rounds[name].append(measure(url, body=BODY, key=KEY, seconds=_SECONDS))
    return {name: median(found) for name, found in rounds.items()}


async def sockets(url: str) -> list[float]:
    """Milliseconds of round trips over a thousand open WebSockets, all speaking together."""
    async with _session() as session:
        opened = [await session.ws_connect(f"{url}/socket") for _ in range(_OPEN)]
        trips = await asyncio.gather(*(_talk(socket) for socket in opened))
        await asyncio.gather(*(socket.close() for socket in opened))
    return [trip for trips_of_one in trips for trip in trips_of_one]


async def streams(url: str) -> list[float]:
    """Milliseconds from an event's making to its coming, over a thousand open streams."""
    async with _session() as session:
        opened = [await session.get(f"{url}/events") for _ in range(_OPEN)]
        delays = await asyncio.gather(*(_listen(answer) for answer in opened))
        for answer in opened:
            answer.close()
    return [delay for delays_of_one in delays for delay in delays_of_one]


async def _talk(socket: aiohttp.ClientWebSocketResponse) -> list[float]:
    trips = []
    for _ in range(_MESSAGES):
        began = time.monotonic()
        await socket.send_str("hello")
        await socket.receive_str()
        trips.append((time.monotonic() - began) * 1e3)
        await asyncio.sleep(0.2)
    return trips


async def _listen(answer: aiohttp.ClientResponse) -> list[float]:
    delays = []
    # What piled up while the others connected says nothing.
    until = time.monotonic() + 1
    while len(delays) < _MESSAGES:
        line = await answer.content.readuntil(b"\n\n")
        if time.monotonic() > until:
            delays.append((time.monotonic() - float(line[6:])) * 1e3)
    return delays


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"authorization": f"Bearer {KEY}"},
        timeout=aiohttp.ClientTimeout(total=None),
    )


@contextmanager
def places() -> Iterator[dict[str, tuple[str, str | None]]]:
    """By name: where requests go, and where streams do (the bare forwarder knows none)."""
    if shutil.which("nginx") is None:
        raise SystemExit("this benchmark needs nginx: apt-get install nginx-light")
    mock, service, nginx, forwarder, door, streaming_door = (free_port() for _ in range(6))
    mock_url, service_url = f"http://127.0.0.1:{mock}", f"http://127.0.0.1:{service}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, mock=mock, service=service, port=nginx))
        stack.enter_context(process(["benchmarks.mock", str(mock)]))
        uvicorn = ["uvicorn", "benchmarks.forwarder:app", "--port", str(forwarder)]
        stack.enter_context(process([*uvicorn, "--log-level", "error"], {"UPSTREAM": mock_url}))
        stack.enter_context(process(["benchmarks.proxied", "service", str(service)]))
        stack.enter_context(process(["benchmarks.proxied", "door", str(door), mock_url]))
        stack.enter_context(
            process(["benchmarks.proxied", "door", str(streaming_door), service_url])
        )
        nginx_command = ["nginx", "-c", str(config), "-e", os.devnull]
        stack.enter_context(running_program(nginx_command))
        for port in (mock, service, nginx, forwarder, door, streaming_door):
            wait_for(port)
        yield {
            "bare service": (mock_url, service_url),
            "nginx": (f"http://127.0.0.1:{nginx}",) * 2,
            "bare forwarder": (f"http://127.0.0.1:{forwarder}", None),
            "moyin": (f"http://127.0.0.1:{door}", f"http://127.0.0.1:{streaming_door}"),
        }


def _row(name: str, found: list[float]) -> str:
    cuts = statistics.quantiles(found, n=100)
    return f"  {name:14} {cuts[49]:10.2f}{cuts[98]:10.2f}"


def main() -> None:
    with places() as found:
        print("\n16 connections       requests/s    p50 ms    p99 ms    errors")
        measured = requests({name: urls[0] for name, urls in found.items()})
        for name, one in measured.items():
            print(
                f"  {name:14} {one.requests_per_second:14,.0f}"
                f"{one.p50_ms:10.2f}{one.p99_ms:10.2f}{one.errors:10}"
            )
        for peer in ("nginx", "bare forwarder"):
            ratio = measured["moyin"].requests_per_second / measured[peer].requests_per_second
            print(f"  moyin over {peer}: {ratio:.2f}")
        print(f"\n{_OPEN} open WebSockets  p50 ms    p99 ms   (round trip, all at once)")
        streaming = {name: url for name, (_, url) in found.items() if url is not None}
        for name, url in streaming.items():
            print(_row(name, asyncio.run(sockets(url))))
        print(f"\n{_OPEN} open streams     p50 ms    p99 ms   (from the service to the client)")
        for name, url in streaming.items():
            print(_row(name, asyncio.run(streams(url))))


if __name__ == "__main__":
    main()
