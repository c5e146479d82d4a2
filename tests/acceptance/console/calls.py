"""Calls the API directly, to check what the console's actions have changed."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from tests.stack import RunningStack
from tests.waiting import eventually_blocking


class Api:
    """Calls the API of a stack with a key, by default the operator's.

    Attributes:
        project: the value of `project` in the metadata of this test's jobs, unlike that of others.
    """

    def __init__(self, stack: RunningStack, key: str | None = None) -> None:
        self.project = f"console-{uuid.uuid4().hex[:8]}"
        self._url = stack.url
        self._headers = {"authorization": f"Bearer {key or stack.api_key}"}

    def send(
        self, method: str, path: str, *, content_type: str | None = None, **options: Any
    ) -> httpx.Response:
        headers = self._headers
        if content_type is not None:
            headers = {**headers, "content-type": content_type}
        return httpx.request(method, f"{self._url}{path}", headers=headers, timeout=60, **options)

    def get(self, path: str, **query: Any) -> Any:
        response = self.send("GET", path, params=query)
        response.raise_for_status()
        return response.json()

    def upload(self, name: str, content: bytes, media_type: str) -> str:
        """Store a file, and return its id."""
        response = self.send(
            "POST", f"/artifacts?name={name}", content=content, content_type=media_type
        )
        response.raise_for_status()
        return str(response.json()["id"])

    def list_files(self) -> list[dict[str, Any]]:
        """Return the files of this test's project."""
        files: list[dict[str, Any]] = self.get(
            "/artifacts", **{"metadata.project": self.project, "limit": 200}
        )["artifacts"]
        return files

    def list_jobs(self) -> list[dict[str, Any]]:
        """Return the jobs of this test's project."""
        jobs: list[dict[str, Any]] = self.get("/jobs", **{"metadata.project": self.project})["jobs"]
        return jobs

    def render(self, **body: Any) -> dict[str, Any]:
        """Render a job of this test's project, and return it when it has succeeded."""
        response = self.send(
            "POST", "/jobs", json={"kind": "render", "metadata": {"project": self.project}, **body}
        )
        response.raise_for_status()
        path = f"/jobs/{response.json()['id']}"
        job: dict[str, Any] = eventually_blocking(
            lambda: job if (job := self.get(path))["finished_at"] else None, 300
        )
        assert job["status"] == "succeeded", job["error"]
        return job
