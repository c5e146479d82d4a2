"""A plain HTTP client of the gateway that retries during failures."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from typing import Any

FINAL = {"succeeded", "failed", "cancelled"}


class StackClient:
    """Submits jobs and polls them, retrying while the gateway is unavailable."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._api_key = api_key

    def submit(self, body: dict[str, Any]) -> str:
        job = self._call("POST", "/jobs", body)
        assert job["status"] == "queued"
        return str(job["id"])

    def submit_patiently(self, body: dict[str, Any], seconds: float) -> str:
        """Submit a job, repeating the call until it succeeds, and return the job's id.

        All calls have the same idempotency key.

        Args:
            seconds: how long to repeat the call.
        """
        key = secrets.token_hex(8)
        deadline = time.monotonic() + seconds
        while True:
            try:
                return str(self._call("POST", "/jobs", body, idempotency_key=key)["id"])
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError):
                    assert error.code >= 500, error
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._call("GET", f"/jobs/{job_id}")
        return job

    def download(self, url: str) -> bytes:
        return self._request_bytes("GET", url)

    def wait(self, job_id: str, statuses: set[str], seconds: float) -> dict[str, Any]:
        """Wait until the job's status is one of ``statuses``, and return the job."""
        return self.wait_until(job_id, lambda job: job["status"] in statuses, seconds)

    def wait_until(self, job_id: str, condition: Any, seconds: float) -> dict[str, Any]:
        job, deadline = None, time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                job = self.job(job_id)
            except (urllib.error.HTTPError, OSError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    assert error.code >= 500, error
                time.sleep(0.2)
                continue
            if condition(job):
                return job
            time.sleep(0.1)
        raise AssertionError(
            f"the job {job_id} did not meet the condition within {seconds} s: {job}"
        )

    def _call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return json.loads(self._request_bytes(method, path, body, **headers))

    def _request_bytes(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        request = urllib.request.Request(
            path if path.startswith("http") else self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "authorization": f"Bearer {self._api_key}",
                "content-type": "application/json",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )
        with urllib.request.urlopen(request, timeout=15) as response:
            body_bytes: bytes = response.read()
            return body_bytes
