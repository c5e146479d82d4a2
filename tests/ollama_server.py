"""Runs a real Ollama built by `scripts/ollama_server.sh`, with SmolLM2-135M under three names."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from actors.llama import find_packaged_gguf
from tests.integration.servers import free_port
from tests.stack import ROOT
from tests.waiting import eventually_blocking

# The same weights: one that chats, and one whose template has a place for tools.
CHAT, TOOLS = "smollm2", "smollm2-tools:135m"
_STARTS_WITHIN = 60
# Without a template, prompts would have no roles.
_TEMPLATE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
_PARAMETERS = """PARAMETER stop <|im_end|>
PARAMETER num_ctx 2048
PARAMETER num_predict 256
PARAMETER num_thread 1
"""


@cache
def find_ollama() -> Path:
    """Return the folder of the program ``ollama``, or skip the test if it is not installed."""
    process = subprocess.run(
        [ROOT / "scripts" / "ollama_server.sh", "built"], capture_output=True, text=True, check=True
    )
    if not process.stdout:
        pytest.skip(process.stderr.strip())
    return Path(process.stdout.strip())


class OllamaServer:
    """A server on a port that stays the same when the server is restarted.

    Args:
        folder: the server's home.
        models_folder: folder of the models, which several servers may share.
        environment: further environment variables of the server.
    """

    def __init__(self, folder: Path, models_folder: Path, **environment: str) -> None:
        self.program = find_ollama() / "ollama"
        self._port = free_port()
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            # Its variables for proxies would send it to the Internet.
            **{name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ},
            "HOME": str(folder),
            "OLLAMA_HOST": f"127.0.0.1:{self._port}",
            "OLLAMA_MODELS": str(models_folder),
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_KEEP_ALIVE": "30m",
            **environment,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def running(self) -> Iterator[OllamaServer]:
        """Run the server during the block, and end all of its processes afterwards."""
        try:
            self.start()
            yield self
        finally:
            self.kill()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually_blocking(self._is_answering, _STARTS_WITHIN)

    def kill(self) -> None:
        """Kill the server and its runners."""
        if self._process is None:
            return
        # Its runners are in its group, and would outlive it.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    @contextmanager
    def suspended_runners(self) -> Iterator[None]:
        """Suspend the processes that run the models during the block, so that no call ends."""
        assert self._process is not None
        runners = psutil.Process(self._process.pid).children()
        assert runners, "Ollama has no model in memory: call a model first"
        for runner in runners:
            runner.suspend()
        try:
            yield
        finally:
            for runner in runners:
                with suppress(psutil.NoSuchProcess):
                    runner.resume()

    def read_log(self) -> str:
        return self._log.read_text()

    def run(self, *arguments: str, **environment: str) -> str:
        """Run the program ``ollama`` as a client of the server, and return its output."""
        process = subprocess.run(
            [self.program, *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def create_models(self) -> None:
        """Create the models from the same model file that the tests of llama.cpp use."""
        self.create(CHAT, f'FROM {find_packaged_gguf()}\nTEMPLATE """{_TEMPLATE}"""\n{_PARAMETERS}')
        self.create(
            TOOLS, f'FROM {CHAT}\nTEMPLATE """{{{{ .Tools }}}}{_TEMPLATE}"""\n{_PARAMETERS}'
        )

    def create(self, name: str, modelfile: str) -> None:
        """Create a model from the content of a Modelfile."""
        path = Path(self.environment["HOME"]) / "Modelfile"
        path.write_text(modelfile)
        self.run("create", name, "-f", str(path))

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request, and return the response's JSON, or None for an empty body."""
        response = httpx.request(method, self.url + path, json=body, timeout=120)
        response.raise_for_status()
        return response.json() if response.content else None

    def _is_answering(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            return httpx.get(self.url).status_code == 200
        except httpx.TransportError:
            return False
