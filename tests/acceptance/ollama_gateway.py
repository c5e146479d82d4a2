"""Runs real Ollama servers, and a gateway in front of them in its own thread."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from anyio.from_thread import start_blocking_portal

from tests.integration.text.fixtures import serving
from tests.ollama_server import OllamaServer
from tests.waiting import eventually_blocking

# The gateway looks at its hosts every five seconds.
SOON = 15


@dataclass(frozen=True, kw_only=True)
class OllamaGateway:
    """A models app in front of Ollama hosts.

    Attributes:
        url: the app's URL without ``/v1``.
        api_key: an API key with every scope.
    """

    url: str
    api_key: str

    @property
    def ollama_url(self) -> str:
        return f"{self.url}/v1/ollama"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"}

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request to a path below ``/v1/ollama``, and return the response."""
        return httpx.request(
            method, self.ollama_url + path, json=body, headers=self.headers, timeout=120
        )

    def list_model_names(self) -> set[str]:
        return {model["name"] for model in self.call("GET", "/api/tags").json()["models"]}

    @contextmanager
    def client(self) -> Iterator[ollama.Client]:
        with ollama.Client(self.ollama_url, headers=self.headers, timeout=120) as client:
            yield client


@contextmanager
def gateway_before(
    folder: Path, hosts: list[str], rules: dict[str, Any] | None = None, **backend: Any
) -> Iterator[OllamaGateway]:
    """Run a gateway in front of these Ollama hosts.

    Args:
        rules: further members of the app's configuration; by default, the app serves all models.
        backend: further members of the back end's configuration.
    """
    folder.mkdir(exist_ok=True)
    config = {"name": "gpu", "type": "ollama", "hosts": hosts, **backend}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(folder, config, rules=rules)) as app,
    ):
        gateway = OllamaGateway(url=app.url, api_key=app.api_key)
        eventually_blocking(gateway.list_model_names)
        yield gateway


@pytest.fixture(scope="session")
def ollama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    """Run an Ollama server with the models ``CHAT`` and ``TOOLS`` that runs two calls at a time."""
    folder = tmp_path_factory.mktemp("ollama")
    server = OllamaServer(folder, folder / "models", OLLAMA_NUM_PARALLEL="2")
    with server.running():
        server.create_models()
        yield server


@pytest.fixture(scope="session")
def small_ollama_server(
    ollama_server: OllamaServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OllamaServer]:
    """Run a server with the same models that runs one call at a time, and queues one more."""
    models_folder = Path(ollama_server.environment["OLLAMA_MODELS"])
    server = OllamaServer(
        tmp_path_factory.mktemp("small-ollama"),
        models_folder,
        OLLAMA_NUM_PARALLEL="1",
        OLLAMA_MAX_QUEUE="1",
        # What it does with calls that wait is in its log only.
        OLLAMA_DEBUG="1",
    )
    with server.running():
        yield server


@pytest.fixture(scope="session")
def ollama_gateway(
    ollama_server: OllamaServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OllamaGateway]:
    """Run a gateway that serves the models of ``ollama_server``."""
    folder = tmp_path_factory.mktemp("ollama-gateway")
    with gateway_before(folder, [ollama_server.url]) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def ollama_relay(
    ollama_gateway: OllamaGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Run ``moyin connect ollama`` for clients that send no key, and yield its URL."""
    profile = {"MOYIN_URL": ollama_gateway.url, "MOYIN_API_KEY": ollama_gateway.api_key}
    process = subprocess.Popen(
        [sys.executable, "-m", "moyin.cli.main", "connect", "ollama", "--port", "0"],
        env=profile | {"MOYIN_DATA": str(tmp_path_factory.mktemp("data")), "COLUMNS": "500"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            first_line = process.stdout.readline()
            assert ollama_gateway.url in first_line
            yield first_line.split(" at ")[1].split()[0]
        finally:
            process.terminate()
