"""Tests that clients behind the gateway get the same answers as directly from a real Ollama."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest

from tests.acceptance.ollama_gateway import SOON, OllamaGateway
from tests.acceptance.text_clients_environment import TextClients, run_script
from tests.ollama_server import CHAT, TOOLS, OllamaServer
from tests.waiting import eventually_blocking

pytestmark = pytest.mark.timeout(900)
HELLO = {"role": "user", "content": "Say hello."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "object", "properties": {"city": {"type": "string"}}}},
        },
    },
}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", {"messages": [{"role": "system", "content": "Be brief."}, HELLO]}),
    "tools": ("chat", {"model": TOOLS, "messages": [HELLO], "tools": [WEATHER]}),
    "generate": ("generate", {"prompt": "Say hello.", "system": "Be brief."}),
    "raw": ("generate", {"prompt": "The capital of France is", "raw": True}),
    "json": ("chat", {"messages": [HELLO], "format": "json"}),
    "unknown members": ("chat", {"messages": [HELLO], "useTools": True, "options": {"no": 1}}),
    "logprobs": ("generate", {"prompt": "Say hello.", "logprobs": True, "top_logprobs": 2}),
    "chat's logprobs": ("chat", {"messages": [HELLO], "logprobs": True, "top_logprobs": 2}),
}
_TIMES = {"created_at", "total_duration", "load_duration"}
_TIMES |= {"prompt_eval_duration", "eval_duration"}


@pytest.fixture(scope="module")
def client(ollama_gateway: OllamaGateway) -> Iterator[ollama.Client]:
    with ollama_gateway.client() as client:
        yield client


@pytest.mark.parametrize("call", CALLS)
def test_answers_equal_those_of_the_server(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer, call: str
) -> None:
    path, call_members = CALLS[call]
    options = {"temperature": 0, "seed": 1, "num_predict": 6, **call_members.get("options", {})}
    body = {"model": CHAT, "stream": False, **call_members, "options": options}
    server_answer = ollama_server.call("POST", f"/api/{path}", body)
    response = ollama_gateway.call("POST", f"/api/{path}", body)
    assert response.status_code == 200, response.text
    gateway_answer = response.json()
    assert _normalize(gateway_answer) == _normalize(server_answer)
    assert gateway_answer["eval_duration"] > 0
    chunks = [
        json.loads(line)
        for line in ollama_gateway.call(
            "POST", f"/api/{path}", body | {"stream": True}
        ).text.splitlines()
    ]
    assert [chunk["done"] for chunk in chunks] == [*[False] * (len(chunks) - 1), True]
    assert "".join(map(_get_text, chunks)) == _get_text(server_answer)
    assert {chunk["model"] for chunk in chunks} == {body["model"]}


def test_a_conversation_continues_by_its_context(client: ollama.Client) -> None:
    options = {"num_predict": 6, "temperature": 0}
    first_answer = client.generate(CHAT, "My name is Ada.", options=options)
    answer_without_context = client.generate(CHAT, "What is my name?", options=options)
    second_answer = client.generate(
        CHAT, "What is my name?", options=options, context=first_answer.context
    )
    assert (second_answer.prompt_eval_count or 0) > (answer_without_context.prompt_eval_count or 0)


def test_answer_follows_the_json_schema(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
    }
    answer = client.chat(
        CHAT, [HELLO], format=schema, options={"num_predict": 60, "temperature": 0}
    )
    assert isinstance(json.loads(answer.message.content or "")["age"], int)


def test_vectors_equal_those_of_the_server(
    client: ollama.Client, ollama_server: OllamaServer
) -> None:
    texts = ["fox", "the hound"]
    server_answer = ollama_server.call("POST", "/api/embed", {"model": CHAT, "input": texts})
    vectors = client.embed(CHAT, texts)
    assert [list(vector) for vector in vectors.embeddings] == server_answer["embeddings"]
    assert vectors.prompt_eval_count == server_answer["prompt_eval_count"]
    old_answer = ollama_server.call("POST", "/api/embeddings", {"model": CHAT, "prompt": "fox"})
    assert list(client.embeddings(CHAT, "fox").embedding) == pytest.approx(old_answer["embedding"])


def test_a_tool_is_refused_by_a_model_without_tools(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="tools") as exc_info:
        client.chat(CHAT, [HELLO], tools=[WEATHER])
    assert exc_info.value.status_code == 400


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["chat", "generate"])
def test_models_are_loaded_and_unloaded(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer, path: str, stream: bool
) -> None:
    for keep_alive, reason in (("30m", "load"), (0, "unload")):
        body = {"model": CHAT, "keep_alive": keep_alive, "stream": stream}
        [line] = ollama_gateway.call("POST", f"/api/{path}", body).text.splitlines()
        last_chunk = json.loads(line)
        assert (last_chunk["done"], last_chunk["done_reason"], last_chunk["model"]) == (
            True,
            reason,
            CHAT,
        )
        # An unload ends when the runner has.
        _wait_until_loaded(ollama_server, is_loaded=reason == "load")


def test_models_are_described_as_by_the_server(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer
) -> None:
    server_models = {
        model["name"]: model for model in ollama_server.call("GET", "/api/tags")["models"]
    }
    listed_models = ollama_gateway.call("GET", "/api/tags").json()["models"]
    for model in listed_models:
        if model["name"] in server_models:
            server_model = server_models.pop(model["name"])
            # The host tells this in /api/show only.
            server_model["details"]["parent_model"] = model["details"]["parent_model"]
            assert model == server_model
    assert not server_models
    for name in (CHAT, f"{CHAT}:latest", TOOLS):
        shown_model = ollama_gateway.call("POST", "/api/show", {"model": name}).json()
        server_model = ollama_server.call("POST", "/api/show", {"model": name})
        # A path of the host.
        shown_model["details"].pop("parent_model"), server_model["details"].pop("parent_model")
        for member in ("details", "capabilities", "template", "modified_at"):
            assert shown_model[member] == server_model[member], member
        # The host lists them in another order every time.
        assert sorted(shown_model["parameters"].split("\n")) == sorted(
            server_model["parameters"].split("\n")
        )
        assert shown_model["model_info"]["llama.context_length"] == 8192
    own_version = ollama_server.call("GET", "/api/version")
    assert ollama_gateway.call("GET", "/api/version").json() == own_version


def test_loading_and_unloading_a_model_is_noticed(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer
) -> None:
    load_body = {"model": CHAT, "stream": False}
    assert ollama_gateway.call("POST", "/api/generate", load_body).status_code == 200
    [server_model] = ollama_server.call("GET", "/api/ps")["models"]

    def find_model() -> dict[str, Any] | None:
        models = ollama_gateway.call("GET", "/api/ps").json()["models"]
        return next((model for model in models if model["name"] == server_model["name"]), None)

    loaded_model = eventually_blocking(find_model, SOON)
    for member in ("size", "size_vram", "context_length", "digest", "details"):
        assert loaded_model[member] == server_model[member], member
    ollama_server.call("POST", "/api/generate", load_body | {"keep_alive": 0})
    eventually_blocking(lambda: find_model() is None, SOON)


@pytest.mark.parametrize("name", [CHAT, f"{CHAT}:latest", TOOLS])
def test_answers_contain_the_requested_model_name(client: ollama.Client, name: str) -> None:
    options = {"num_predict": 1}
    assert client.chat(name, [HELLO], options=options).model == name
    assert [chunk.model for chunk in client.generate(name, "Hi", options=options, stream=True)][
        -1
    ] == name
    assert client.embed(name, "fox").model == name


def test_the_server_is_alive(ollama_gateway: OllamaGateway, ollama_server: OllamaServer) -> None:
    server_answer = httpx.get(ollama_server.url)
    response = ollama_gateway.call("GET", "/")
    assert (response.status_code, response.text) == (server_answer.status_code, server_answer.text)
    assert ollama_gateway.call("HEAD", "/").status_code == 200


def test_pull_of_an_existing_model_succeeds(client: ollama.Client) -> None:
    assert client.pull(CHAT).status == "success"
    assert [progress.status for progress in client.pull(TOOLS, stream=True)][-1] == "success"


def test_errors_equal_those_of_the_server(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer
) -> None:
    body = {"model": "gone", "messages": [HELLO]}
    server_answer = httpx.post(f"{ollama_server.url}/api/chat", json=body)
    response = ollama_gateway.call("POST", "/api/chat", body)
    assert response.status_code == server_answer.status_code == 404
    assert isinstance(response.json()["error"], str)


def test_new_and_deleted_models_are_noticed(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer
) -> None:
    ollama_server.call("POST", "/api/copy", {"source": CHAT, "destination": "found:one"})
    eventually_blocking(lambda: "found:one" in ollama_gateway.list_model_names(), SOON)
    with ollama_gateway.client() as client:
        assert client.chat("found:one", [HELLO], options={"num_predict": 1}).done
    ollama_server.call("DELETE", "/api/delete", {"model": "found:one"})
    eventually_blocking(lambda: "found:one" not in ollama_gateway.list_model_names(), SOON)


def test_an_operator_changes_the_hosts_models(
    ollama_gateway: OllamaGateway, client: ollama.Client
) -> None:
    client.copy(CHAT, "copied")
    assert "copied:latest" in ollama_gateway.list_model_names()
    assert client.create("made", from_=CHAT, system="Be brief.").status == "success"
    assert client.show("made").model_dump()["template"] == client.show(CHAT).template
    for name in ("copied", "made"):
        client.delete(name)
    assert not {"copied:latest", "made:latest"} & ollama_gateway.list_model_names()


def test_openais_clients_get_logprobs(
    ollama_gateway: OllamaGateway, ollama_server: OllamaServer
) -> None:
    options = {"temperature": 0, "num_predict": 4}
    server_answer = ollama_server.call(
        "POST",
        "/api/chat",
        {"model": CHAT, "messages": [HELLO], "options": options}
        | {"stream": False, "logprobs": True, "top_logprobs": 2},
    )
    request: dict[str, Any] = {
        "model": CHAT,
        "messages": [HELLO],
        "temperature": 0,
        "max_tokens": 4,
    }
    request |= {"logprobs": True, "top_logprobs": 2}
    with openai.OpenAI(
        base_url=f"{ollama_gateway.url}/v1", api_key=ollama_gateway.api_key
    ) as client:
        [choice] = client.chat.completions.create(**request).choices
        chunks = list(client.chat.completions.create(**request, stream=True))
    assert choice.logprobs is not None
    logprobs = choice.logprobs.content or []
    assert [token_logprob.token for token_logprob in logprobs] == [
        token_logprob["token"] for token_logprob in server_answer["logprobs"]
    ]
    assert [token_logprob.logprob for token_logprob in logprobs] == pytest.approx(
        [token_logprob["logprob"] for token_logprob in server_answer["logprobs"]], abs=1e-3
    )
    assert all(len(token_logprob.top_logprobs) == 2 for token_logprob in logprobs)
    streamed_tokens = [
        token_logprob.token
        for chunk in chunks
        for chunk_choice in chunk.choices
        if chunk_choice.logprobs is not None
        for token_logprob in chunk_choice.logprobs.content or ()
    ]
    assert streamed_tokens == [token_logprob.token for token_logprob in logprobs]


def test_npm_ollama_package_works(
    ollama_gateway: OllamaGateway,
    ollama_server: OllamaServer,
    text_clients: TextClients,
    tmp_path: Path,
) -> None:
    # Node.js looks for packages beside the script.
    (tmp_path / "node_modules").symlink_to(text_clients.require_node())
    summary = run_script(
        ["node", "ollama.mjs", ollama_gateway.ollama_url, ollama_gateway.api_key, CHAT], tmp_path
    )
    options = {"temperature": 0, "num_predict": 4}
    request = {"model": CHAT, "messages": [HELLO], "options": options, "stream": False}
    server_answer = ollama_server.call("POST", "/api/chat", request)
    assert summary["chat"] == summary["streamed"] == server_answer["message"]["content"]
    assert (summary["name"], summary["logprobs"]) == (CHAT, 4)
    assert summary["generated"]
    vectors = ollama_server.call("POST", "/api/embed", {"model": CHAT, "input": "fox"})
    assert summary["embeddings"] == vectors["embeddings"]
    assert len(summary["embedding"]) == len(summary["embeddings"][0])
    assert "completion" in summary["capabilities"]
    assert summary["pulled"] == "success"
    assert f"{CHAT}:latest" in summary["listed"]
    assert summary["version"] == ollama_server.call("GET", "/api/version")["version"]


def _normalize(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without its times and durations, and with rounded numbers."""
    members = {name: member_value for name, member_value in answer.items() if name not in _TIMES}
    rounded_answer: dict[str, Any] = json.loads(
        json.dumps(members), parse_float=lambda text: round(float(text), 3)
    )
    return rounded_answer


def _get_text(answer: dict[str, Any]) -> str:
    text: str = answer.get("response") or (answer.get("message") or {}).get("content") or ""
    return text


def _wait_until_loaded(server: OllamaServer, *, is_loaded: bool) -> None:
    eventually_blocking(lambda: bool(server.call("GET", "/api/ps")["models"]) == is_loaded)
