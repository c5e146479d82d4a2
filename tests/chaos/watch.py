"""Clients that call a farm all the time and check every response, while processes are killed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc

from moyin.jobs.grpc import moyin_pb2, moyin_pb2_grpc

SERVICES = frozenset({"gateway", "models", "accounts", "gRPC"})
_PAUSE_SECONDS = 0.25
# A call may be held until replicas are up again. On a busy machine, the outage takes minutes.
_PATIENCE_SECONDS = 400.0
# Once a service answers again, a call must not be held any longer than this.
_HELD_SECONDS = 60.0
_OUTAGE_STATUSES = frozenset({502, 503, 504})
_JSON = frozenset({"application/json", "application/problem+json"})
_PROBLEM = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})


def _problem_code(body: dict[str, Any]) -> Any:
    return body["code"] if body.keys() >= _PROBLEM else None


def _openai_code(body: dict[str, Any]) -> Any:
    return body["error"]["code"] if body["error"].keys() >= {"message", "type", "param"} else None


def _anthropic_code(body: dict[str, Any]) -> Any:
    return body["error"]["code"] if body["type"] == "error" and body["error"]["type"] else None


def _ollama_code(body: dict[str, Any]) -> Any:
    return body["code"] if isinstance(body["error"], str) else None


def _comfyui_code(body: dict[str, Any]) -> Any:
    return body["code"] if body["error"]["message"] and body["node_errors"] == {} else None


def _comfyui_v2_code(body: dict[str, Any]) -> Any:
    return body["error"]["code"] if body["error"]["message"] else None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A request that is sent repeatedly.

    Attributes:
        service: the service that normally answers, as named in the table of docs/operations.md.
        normal: the status of the normal response.
        normal_code: the error code of the normal response, or None if it is no error.
        code: reads the code from an error's body; returns None or raises if the body is malformed.
    """

    service: str
    method: str
    path: str
    normal: int
    normal_code: str | None = None
    code: Callable[[dict[str, Any]], Any] = _problem_code


@dataclass(frozen=True, kw_only=True)
class Call:
    """The result of a request.

    Attributes:
        began, ended: times by `time.monotonic`.
        outcome: ``ok``, ``refused``, ``cut`` (the connection ended without a status), ``silent`` (no
            response in time), or the status of an error.
        wrong: what was wrong with a response that clients must never get, or None.
    """

    service: str
    began: float
    ended: float
    outcome: str
    wrong: str | None = None


@dataclass
class ResponseWatch:
    """Sends all probes repeatedly while a ``with`` block runs, and appends each result to ``calls``."""

    url: str
    grpc_port: int
    key: str
    job_id: str
    calls: list[Call] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def calling(self) -> Iterator[ResponseWatch]:
        """Send the probes in a separate thread during the block."""
        with ThreadPoolExecutor(1) as pool:
            run_future = pool.submit(asyncio.run, self._send_probes())
            try:
                yield self
            finally:
                self._stop.set()
            run_future.result()

    @property
    def wrong(self) -> list[str]:
        """Return a description of each wrong response, without repetitions."""
        problems = [call.wrong for call in self.calls if call.wrong is not None]
        return list(dict.fromkeys([*problems, *self._find_held_calls()]))

    def _find_held_calls(self) -> Iterator[str]:
        """Yield a problem for each call that was held although its service had recovered.

        Such a call ended more than a minute after another call of the same service that began later
        and succeeded.
        """
        calls = list(self.calls)
        for held_call in calls:
            if held_call.ended - held_call.began > _HELD_SECONDS and any(
                call.service == held_call.service
                and call.outcome == "ok"
                and call.began > held_call.began
                and held_call.ended - call.ended > _HELD_SECONDS
                for call in calls
            ):
                seconds = held_call.ended - held_call.began
                yield f"{held_call.service}: a call was held for {seconds:.0f} s"

    def calls_since(self, moment: float) -> list[Call]:
        """Return the calls that ended after ``moment`` (by `time.monotonic`)."""
        return [call for call in list(self.calls) if call.ended >= moment]

    def wait_until_well(
        self, since: float, seconds: float = 3.0, patience: float = _PATIENCE_SECONDS
    ) -> None:
        """Wait until every service has responded normally for ``seconds`` without a break.

        Args:
            since: the time by `time.monotonic` from which responses count and ``patience`` runs.

        Raises:
            AssertionError: a service did not respond normally within ``patience`` seconds.
        """
        while time.monotonic() - since < patience:
            time.sleep(0.2)
            now = time.monotonic()
            recent_calls = self.calls_since(max(since, now - seconds))
            well_services = {call.service for call in recent_calls if call.outcome == "ok"}
            if now - since > seconds and well_services == SERVICES and _are_all_well(recent_calls):
                return
        raise AssertionError(
            f"services still fail after {patience:.0f} s: {self.calls_since(now - 1)[-20:]}"
        )

    def wait_until_unavailable(self, since: float, patience: float = 60.0) -> None:
        """Wait until no service responds normally any more.

        Args:
            since: the time by `time.monotonic` from which responses count and ``patience`` runs.

        Raises:
            AssertionError: a service still responded normally after ``patience`` seconds.
        """
        while time.monotonic() - since < patience:
            time.sleep(0.2)
            recent_calls = self.calls_since(max(since, time.monotonic() - 1))
            unavailable_services = {call.service for call in recent_calls if call.outcome != "ok"}
            if unavailable_services == SERVICES and not any(
                call.outcome == "ok" for call in recent_calls
            ):
                return
        raise AssertionError(f"a service still responds normally after {patience:.0f} s")

    async def _send_probes(self) -> None:
        # Every call opens a connection, because a kept one would not show who listens on the port.
        connector = aiohttp.TCPConnector(force_close=True)
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            for probe in build_probes(self.job_id):
                group.create_task(self._repeat(self._send_http_probe, session, probe))
            # gRPC's asyncio API is not used, because all event loops of a process share its poller.
            group.create_task(self._repeat(asyncio.to_thread, self._send_grpc_probe))

    async def _repeat(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Repeat a call until the watch ends; each call has a timeout."""
        while not self._stop.is_set():
            self.calls.append(await call(*arguments))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _send_http_probe(self, session: aiohttp.ClientSession, probe: Probe) -> Call:
        started_at = time.monotonic()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        body = b"{}" if probe.method == "POST" else None
        problem = None
        try:
            async with session.request(
                probe.method, self.url + probe.path, headers=headers, data=body
            ) as response:
                outcome, problem = judge_response(
                    probe, response.status, response.headers, await response.read()
                )
        except aiohttp.ClientConnectorError:
            outcome = "refused"
        except (aiohttp.ClientError, ConnectionError):
            outcome = "cut"
        except TimeoutError:
            outcome, problem = (
                "silent",
                f"{probe.path}: no response within {_PATIENCE_SECONDS:.0f} s",
            )
        return Call(
            service=probe.service,
            began=started_at,
            ended=time.monotonic(),
            outcome=outcome,
            wrong=problem,
        )

    def _send_grpc_probe(self) -> Call:
        started_at = time.monotonic()
        outcome, problem = "ok", None
        metadata = (("authorization", f"Bearer {self.key}"), ("application", "gateway"))
        # The channel has its own pool, so that it does not wait out another channel's retry pause.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options) as channel:
            request = moyin_pb2.GetJobRequest(id=self.job_id)
            try:
                moyin_pb2_grpc.MoyinStub(channel).GetJob(
                    request, metadata=metadata, timeout=_PATIENCE_SECONDS
                )
            except grpc.RpcError as error:
                outcome = error.code().name.lower()
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    problem = f"gRPC: {error.code().name}: {error.details()}"
                elif "connect" in (error.details() or ""):
                    outcome = "refused"
        return Call(
            service="gRPC", began=started_at, ended=time.monotonic(), outcome=outcome, wrong=problem
        )


def build_probes(job_id: str) -> list[Probe]:
    """Return requests to every app in every protocol; most are cheap, because they are refused."""
    return [
        Probe(service="gateway", method="GET", path=f"/jobs/{job_id}", normal=200),
        Probe(
            service="gateway", method="GET", path="/nobody/knows/this", normal=404,
            normal_code="route_not_found",
        ),
        Probe(
            service="gateway", method="POST", path="/prompt", normal=400,
            normal_code="invalid_graph", code=_comfyui_code,
        ),
        Probe(
            service="gateway", method="GET", path=f"/api/v2/jobs/{job_id}", normal=200,
            code=_comfyui_v2_code,
        ),
        Probe(
            service="models", method="POST", path="/v1/chat/completions", normal=400,
            normal_code="invalid_request", code=_openai_code,
        ),
        Probe(
            service="models", method="POST", path="/v1/messages", normal=400,
            normal_code="invalid_request", code=_anthropic_code,
        ),
        Probe(
            service="models", method="POST", path="/api/chat", normal=400,
            normal_code="invalid_request", code=_ollama_code,
        ),
        Probe(service="accounts", method="GET", path="/accounts/whoami", normal=200),
    ]  # fmt: skip


def _are_all_well(calls: list[Call]) -> bool:
    return all(call.outcome == "ok" for call in calls)


def judge_response(
    probe: Probe, status: int, headers: Mapping[str, str], body: bytes
) -> tuple[str, str | None]:
    """Return the outcome of a response to ``probe`` (see `Call`), and what is wrong or None."""
    response_text = (
        f"{probe.method} {probe.path}: {status} {headers.get('content-type')} {body[:300]!r}"
    )
    if status == probe.normal and probe.normal_code is None:
        return "ok", None
    try:
        code = probe.code(json.loads(body))
    except (ValueError, LookupError, TypeError, AttributeError):
        return str(status), f"malformed body: {response_text}"
    if status == probe.normal and code == probe.normal_code:
        return "ok", None
    if status not in _OUTAGE_STATUSES:
        return str(status), f"not a status of an outage (502, 503, 504): {response_text}"
    if not isinstance(code, str) or headers.get("content-type") not in _JSON:
        return str(status), f"malformed body: {response_text}"
    for name in ("retry-after", "x-request-id"):
        if not headers.get(name):
            return str(status), f"the header {name} is missing: {response_text}"
    return str(status), None
