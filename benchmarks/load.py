"""Sends many requests with the load generator wrk and parses its report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The results of a run of wrk.

    Attributes:
        errors: the number of requests without a response, or with a status of 4xx or 5xx.
    """

    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def measure_load(
    url: str,
    *,
    body: object,
    key: str = "none",
    headers: Mapping[str, str] | None = None,
    connections: int = 16,
    seconds: int = 5,
) -> Measurement:
    """Send ``body`` as JSON repeatedly for ``seconds``, and return the results.

    Args:
        key: the API key of the requests.
        connections: the number of connections, each with one request at a time.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: run `apt-get install wrk`")
    with tempfile.TemporaryDirectory() as folder:
        script_path = Path(folder) / "post.lua"
        script_path.write_text(
            "wrk.method = 'POST'\n"
            f"wrk.body = {_quote_for_lua(json.dumps(body))}\n"
            "wrk.headers['content-type'] = 'application/json'\n"
            f"wrk.headers['authorization'] = {_quote_for_lua('Bearer ' + key)}\n"
            + "".join(
                f"wrk.headers['{k}'] = {_quote_for_lua(v)}\n" for k, v in (headers or {}).items()
            )
        )
        command: list[str] = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            "--timeout=30s",
            "-s",
            str(script_path),
            url,
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    return _parse_output(process.stdout)


def _parse_output(output: str) -> Measurement:
    def read_percentile_ms(percentile: str) -> float:
        latency = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s)\s*$", output, re.MULTILINE)
        assert latency is not None, output
        return float(latency[1]) * _UNITS[latency[2]]

    rate_match = re.search(r"^Requests/sec:\s+([\d.]+)$", output, re.MULTILINE)
    total_match = re.search(r"^\s+(\d+) requests in", output, re.MULTILINE)
    assert rate_match is not None and total_match is not None, output
    bad_responses = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    socket_errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output
    )
    return Measurement(
        requests=int(total_match[1]),
        requests_per_second=float(rate_match[1]),
        p50_ms=read_percentile_ms("50"),
        p99_ms=read_percentile_ms("99"),
        errors=(int(bad_responses[1]) if bad_responses else 0)
        + sum(map(int, socket_errors.groups() if socket_errors else ())),
    )


def _quote_for_lua(text: str) -> str:
    return "[==[" + text + "]==]"
