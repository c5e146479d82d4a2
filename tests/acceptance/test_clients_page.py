"""Runs the snippets of docs/clients.md that need no separate environment."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml
from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

from deployments.models.config import ModelsConfig
from tests.acceptance.clients_page import list_snippets
from tests.acceptance.text_gateway import SCRIPTED, TextGateway

TEXT = "Hello! It is sunny, and the answer is 3."
# Where the other snippets of the page are run.
ELSEWHERE = {
    "aisdk", "claude-code", "codex", "continue", "files", "haystack", "langchain-js", "litellm",
    "litellm-in-front", "llama-index", "node-sdks", "openai-agents",
}  # fmt: skip
HERE = {"langchain", "litellm-behind", "omit", "sdks", "variables"}


def run_snippet(name: str, gateway: TextGateway) -> list[Any]:
    """Run a Python snippet, and return the values of its expressions."""
    expression_values: list[Any] = []
    variables: dict[str, Any] = {}
    exec(list_snippets()["variables"][1], variables)
    snippet_variables = {"gateway": gateway.url, "key": gateway.api_key, "model": SCRIPTED}
    assert variables.keys() - {"__builtins__"} == snippet_variables.keys()
    variables |= snippet_variables
    _, snippet = list_snippets()[name]
    for statement in ast.parse(snippet).body:
        code = ast.unparse(statement)
        if isinstance(statement, ast.Expr):
            expression_values.append(eval(code, variables))
        else:
            exec(code, variables)
    return expression_values


def test_every_snippet_is_run() -> None:
    assert list_snippets().keys() == HERE | ELSEWHERE


def test_documented_sdk_snippets_work(text_gateway: TextGateway) -> None:
    openai, anthropic, ollama = run_snippet("sdks", text_gateway)
    request: Any = {"model": SCRIPTED, "messages": [{"role": "user", "content": "Say hello."}]}
    assert openai.chat.completions.create(**request).choices[0].message.content == TEXT
    assert anthropic.messages.create(**request, max_tokens=99).content[0].text == TEXT
    assert ollama.chat(**request).message.content == TEXT
    for client in (openai, anthropic, ollama._client):
        client.close()


def test_langchain_client_works(text_gateway: TextGateway) -> None:
    models = run_snippet("langchain", text_gateway)
    assert [type(model) for model in models] == [ChatOpenAI, ChatAnthropic, ChatOllama]
    for model in models:
        assert model.invoke("Say hello.").content == TEXT
    models[2]._client._client.close()


@pytest.mark.parametrize("name", ["litellm-behind", "omit"])
def test_documented_configurations_are_valid(name: str) -> None:
    config_data = yaml.safe_load(list_snippets()[name][1])
    if name == "omit":
        model_defaults = {"context": 2048, "price": {"input": 0, "output": 0}}
        models = [
            {"name": model, **model_defaults} for model in config_data["aliases"]["chat"]["models"]
        ]
        config_data["backends"] = [
            {"name": "b", "type": "openai", "base_url": "http://a.test/v1", "models": models}
        ]
    config = ModelsConfig.model_validate(config_data)
    assert config.backends[0].type == "openai"
    if name == "omit":
        assert config.aliases["chat"].omit == {"tools"}
