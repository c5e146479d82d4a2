"""Tests third-party text clients and frameworks, unchanged, on the scripted model.

One process runs all checks of a client (``text_clients``), and each check is a test here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest

from tests.acceptance.clients_page import fill_in_snippet
from tests.acceptance.text_clients_environment import TextClients, run_script
from tests.acceptance.text_gateway import SCRIPTED, VECTORS, TextGateway

pytestmark = pytest.mark.timeout(400)
CheckResults = Mapping[str, str]


def _name_checks(
    clients: tuple[str, ...], checks: tuple[str, ...], *further_checks: str
) -> list[str]:
    return [*(f"{kind} {check}" for kind, check in product(clients, checks)), *further_checks]


NODE_CHECKS = {
    "aisdk": _name_checks(
        ("openai", "openai.chat", "anthropic", "openai-compatible"),
        ("generateText", "streamText", "tools", "objects", "a picture", "an error"),
        "openai continues a response",
        "openai.completion",
        "openai and openai-compatible embeddings",
    ),
    "langchain": _name_checks(
        ("ChatOpenAI", "ChatOpenAI useResponsesApi", "ChatAnthropic", "ChatOllama"),
        ("invoke", "stream", "tools", "objects"),
        "OpenAI completes",
        "OpenAIEmbeddings and OllamaEmbeddings",
    ),
    "sdks": [
        "openai responses create and continue",
        "openai responses stream",
        "openai responses parse",
        "openai responses retrieve, input items and delete",
        "openai chat",
        "openai embeddings",
        "openai models",
        "ollama chat",
        "ollama tools",
        "ollama objects",
        "ollama generate",
        "ollama embed and embeddings",
        "ollama list, show, ps and version",
    ],
}
LITELLM_CHECKS = _name_checks(
    ("openai", "hosted_vllm", "anthropic", "ollama_chat"),
    ("answers_whole", "streams", "runs_tools", "fills_objects", "reports_errors"),
    "text-completion-openai",
    "ollama generates",
    "embeddings",
    "responses",
    "lines of the page",
    "in front of the gateway",
)
LLAMA_INDEX_CHECKS = _name_checks(
    ("OpenAI", "Anthropic", "OpenAILike chat", "Ollama"),
    ("chats", "runs_tools", "runs_an_agent", "fills_objects"),
    "OpenAILike completes",
    "embeddings",
)
HAYSTACK_CHECKS = _name_checks(
    ("openai", "openai responses", "anthropic", "ollama"),
    ("chats", "runs_an_agent"),
    "openai fills_objects",
    "embeddings",
)


@pytest.fixture(scope="module")
def node_results(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path_factory: pytest.TempPathFactory
) -> CheckResults:
    folder = tmp_path_factory.mktemp("node")
    # Node.js looks for packages beside the script.
    (folder / "node_modules").symlink_to(text_clients.require_node())
    return _run_checks("node", "clients.mjs", text_gateway, folder)


@pytest.fixture(scope="module")
def litellm_results(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path_factory: pytest.TempPathFactory
) -> CheckResults:
    folder = tmp_path_factory.mktemp("litellm")
    config = fill_in_snippet("litellm-in-front", url=text_gateway.url, model=SCRIPTED)
    (folder / "litellm_in_front.yaml").write_text(config)
    return _run_checks(text_clients.python, "litellm_client.py", text_gateway, folder)


@pytest.fixture(scope="module")
def llama_index_results(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path_factory: pytest.TempPathFactory
) -> CheckResults:
    folder = tmp_path_factory.mktemp("llama_index")
    return _run_checks(
        text_clients.frameworks_python, "llama_index_client.py", text_gateway, folder
    )


@pytest.fixture(scope="module")
def haystack_results(
    text_clients: TextClients, text_gateway: TextGateway, tmp_path_factory: pytest.TempPathFactory
) -> CheckResults:
    folder = tmp_path_factory.mktemp("haystack")
    return _run_checks(text_clients.frameworks_python, "haystack_client.py", text_gateway, folder)


def _run_checks(program: str, script: str, text_gateway: TextGateway, folder: Path) -> CheckResults:
    script_arguments = [text_gateway.url, text_gateway.api_key, SCRIPTED, VECTORS]
    result: CheckResults = run_script([program, script, *script_arguments], folder)
    return result


class TestAiSdk:
    SUITE = "Vercel AI SDK 7.0.173"

    @pytest.mark.parametrize("check", NODE_CHECKS["aisdk"])
    def test_check_passes(self, node_results: CheckResults, check: str) -> None:
        assert node_results[f"aisdk: {check}"] == "ok"


class TestLangChainJs:
    SUITE = "LangChain.js 1.4.0"

    @pytest.mark.parametrize("check", NODE_CHECKS["langchain"])
    def test_check_passes(self, node_results: CheckResults, check: str) -> None:
        assert node_results[f"langchain: {check}"] == "ok"


class TestNodeSdks:
    SUITE = "openai 7.59.0 and ollama 0.6.4 (npm)"

    @pytest.mark.parametrize("check", NODE_CHECKS["sdks"])
    def test_check_passes(self, node_results: CheckResults, check: str) -> None:
        assert node_results[f"sdks: {check}"] == "ok"

    def test_no_check_is_left_out(self, node_results: CheckResults) -> None:
        listed_checks = {
            f"{suite}: {name}" for suite, names in NODE_CHECKS.items() for name in names
        }
        assert node_results.keys() == listed_checks


class TestLiteLlm:
    SUITE = "LiteLLM 1.110.2"

    @pytest.mark.parametrize("check", LITELLM_CHECKS)
    def test_check_passes(self, litellm_results: CheckResults, check: str) -> None:
        assert litellm_results[check] == "ok"

    def test_no_check_is_left_out(self, litellm_results: CheckResults) -> None:
        assert litellm_results.keys() == set(LITELLM_CHECKS)


class TestLlamaIndex:
    SUITE = "LlamaIndex 0.14.25"

    @pytest.mark.parametrize("check", LLAMA_INDEX_CHECKS)
    def test_check_passes(self, llama_index_results: CheckResults, check: str) -> None:
        assert llama_index_results[check] == "ok"

    def test_no_check_is_left_out(self, llama_index_results: CheckResults) -> None:
        assert llama_index_results.keys() == set(LLAMA_INDEX_CHECKS)


class TestHaystack:
    SUITE = "Haystack 3.4.1"

    @pytest.mark.parametrize("check", HAYSTACK_CHECKS)
    def test_check_passes(self, haystack_results: CheckResults, check: str) -> None:
        assert haystack_results[check] == "ok"

    def test_no_check_is_left_out(self, haystack_results: CheckResults) -> None:
        assert haystack_results.keys() == set(HAYSTACK_CHECKS)
