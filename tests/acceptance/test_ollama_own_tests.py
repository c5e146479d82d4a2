"""Runs Ollama's own server tests (`integration/` of its Go module) through the gateway.

Some tests use a model whose name is configurable. Others use models of Ollama's library; for these,
our model is copied to their names. Tests are left out if they need a GPU, pictures, or abilities
that so small a model lacks, such as tool calls.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.acceptance.ollama_gateway import SOON, OllamaGateway
from tests.ollama_server import CHAT, OllamaServer, find_ollama
from tests.stack import RecordMeasurement
from tests.waiting import eventually_blocking

pytestmark = pytest.mark.timeout(1800)
# All of them in half a minute of processor time, or the others, too.
_EVERY = "MOYIN_OLLAMA_TESTS"
_SHORT = (
    "TestAPIListModels",
    "TestAPIGenerateLogprobs",
    "TestAPIChatLogprobs",
    "TestNumPredict",
    "TestBlueSky",
)
_LONG = (
    "TestAPIGenerate",
    "TestAPIChat",
    "TestConcurrentChat",
    "TestMultiModelStress",
    "TestLongInputContext",
    "TestGenerateWithHistory",
    "TestChatWithHistory",
    "TestParallelGenerateWithHistory",
    "TestParallelChatWithHistory",
)
# Each of these repeats itself for eleven models, which would all be ours.
_EMBEDDINGS = ("TestEmbedTruncation", "TestEmbedLargeInput", "TestEmbedStatusCode")
_PASSED = re.compile(r"^ *--- PASS: (\S+)", re.MULTILINE)
_MODEL = "own-tests"
_NAMES = (
    _MODEL, "all-minilm", "deepseek-r1:1.5b", "gemma2:2b", "gemma3:270m", "gpt-oss:20b",
    "llama3.2", "llama3.2:1b", "qwen3:0.6b",
)  # fmt: skip
# The answers are the same every time, so that chance does not decide what passes.
_MODELFILE = f'FROM {CHAT}\nPARAMETER temperature 0\nLICENSE "Apache 2.0"\n'


@pytest.fixture(scope="module", autouse=True)
def _copy_models(ollama_server: OllamaServer, ollama_gateway: OllamaGateway) -> Iterator[None]:
    """Copy the server's model to all names that the tests use, and remove the copies at the end."""
    ollama_server.create(_MODEL, _MODELFILE)
    for name in _NAMES[1:]:
        ollama_server.call("POST", "/api/copy", {"source": _MODEL, "destination": name})
    tagged_names = {name if ":" in name else f"{name}:latest" for name in _NAMES}
    eventually_blocking(lambda: tagged_names <= ollama_gateway.list_model_names(), SOON)
    yield
    for name in _NAMES:
        ollama_server.call("DELETE", "/api/delete", {"model": name})
    eventually_blocking(lambda: not tagged_names & ollama_gateway.list_model_names(), SOON)


@pytest.mark.parametrize(
    ("tests", "subtest_pattern"),
    [
        pytest.param(_SHORT, "", id="short"),
        pytest.param(_EMBEDDINGS, "/^all-minilm$", id="embeddings"),
        pytest.param(
            _LONG,
            "",
            id="long",
            marks=pytest.mark.skipif(
                not os.environ.get(_EVERY), reason=f"takes minutes; set {_EVERY}=1"
            ),
        ),
    ],
)
def test_ollamas_own_tests_pass_as_on_the_bare_server(
    ollama_server: OllamaServer,
    ollama_relay: str,
    record_measurement: RecordMeasurement,
    tests: tuple[str, ...],
    subtest_pattern: str,
) -> None:
    pattern = f"^({'|'.join(tests)})${subtest_pattern}"
    started_at = time.monotonic()
    bare_passed_tests, bare_output = _run_own_tests(ollama_server.url, pattern)
    bare_ended_at = time.monotonic()
    passed_tests, output = _run_own_tests(ollama_relay, pattern)
    ended_at = time.monotonic()
    record_measurement(
        f"{len(passed_tests)} of Ollama's own tests through the gateway: "
        f"{ended_at - bare_ended_at:.0f} s, "
        f"{len(bare_passed_tests)} on the bare server: {bare_ended_at - started_at:.0f} s"
    )
    assert passed_tests >= bare_passed_tests, output[-20_000:]
    assert bare_passed_tests >= set(tests), bare_output[-20_000:]


def _run_own_tests(url: str, pattern: str) -> tuple[set[str], str]:
    """Run the tests that match ``pattern`` against a server.

    Returns:
        The names of the tests that passed, and the output.
    """
    folder = find_ollama()
    process = subprocess.run(
        [
            folder / "integration.test",
            "-test.v",
            "-test.timeout=900s",
            f"-test.run={pattern}",
        ],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OLLAMA_HOST": url,
            "OLLAMA_TEST_EXISTING": "1",
            "OLLAMA_TEST_DEFAULT_MODEL": _MODEL,
        },
        capture_output=True,
        text=True,
    )
    return set(_PASSED.findall(process.stdout)), process.stdout + process.stderr
