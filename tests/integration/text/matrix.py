"""Tests each feature of text requests with each client protocol on each kind of back end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.integration.text.fixtures import serving
from tests.integration.text.matrix_clients import open_clients
from tests.integration.text.matrix_features import (
    Client,
    ReceivedAnswer,
    Refused,
    RequestedFeatures,
)
from tests.integration.text.wires.script import CACHED, PICTURE, PROMPT, SEEN, THOUGHT
from tests.integration.text.wires.server import WireServer

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "matrix.md"
BACKENDS = ("Claude", "Ollama", "OpenAI-compatible")
_MODELS = {"Claude": "m-claude", "Ollama": "m-ollama", "OpenAI-compatible": "m-openai"}
# Responses are complete whatever ended them. Ollama has one word for all ends but one, and no count of cached tokens.
_REASONS = {
    "OpenAI": {"end": "stop", "tools": "tool_calls", "stop": "stop"},
    "Responses": {"end": "completed", "tools": "completed"},
    "Anthropic": {"end": "end_turn", "tools": "tool_use", "stop": "stop_sequence"},
    "Ollama": {"end": "stop", "tools": "stop", "stop": "stop"},
}
# Members without a word in the domain. Tests compare this with what the translations do.
DROPPED = {
    "OpenAI": (
        "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store",
    ),
    "Responses": (
        "max_tool_calls", "metadata", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "safety_identifier", "service_tier",
    ),
    "Anthropic": (
        "cache_control", "diagnostics", "service_tier", "speed", "user_profile_id", "workspace_id",
    ),
    "Ollama": ("keep_alive",),
}  # fmt: skip
PARIS = ("weather", {"city": "Paris"})
ROME = ("weather", {"city": "Rome"})


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """The result of one feature with one client and one back end.

    Attributes:
        passed: True if the answer was as requested.
        field: the field that the gateway named when it refused the request; None if it did not.
    """

    passed: bool = False
    field: str | None = None

    def __str__(self) -> str:
        if self.passed:
            return "yes"
        return f"400 `{self.field}`" if self.field is not None else "no word"


Matrix = Mapping[tuple[str, str], Mapping[str, MatrixCell]]


@dataclass(frozen=True, kw_only=True)
class _MatrixCase:
    """One client with one back end."""

    protocol: str
    backend: str
    client: Client
    picture_url: str

    async def send_request(self, features: RequestedFeatures, *, stream: bool) -> ReceivedAnswer:
        answer = await self.client.send_request(_MODELS[self.backend], features, stream=stream)
        if answer is None:
            raise _NotExpressible
        return answer

    def check_end(self, answer: ReceivedAnswer, expected_end: str) -> None:
        expected_reason = _REASONS[self.protocol][expected_end]
        # A back end that does not tell which stop string it met leaves a plain end.
        if expected_end == "stop" and self.backend == "Ollama":
            expected_reason = _REASONS[self.protocol]["end"]
        assert answer.reason == expected_reason, answer
        assert answer.prompt == PROMPT, answer
        assert answer.output > 0, answer


class _NotExpressible(Exception):
    """Raised if the client's protocol cannot express a feature."""


async def _check_text(case: _MatrixCase, stream: bool) -> None:
    answer = await case.send_request(RequestedFeatures(history=True), stream=stream)
    assert answer.text == "Be brief. After 3 turns STOP: hello", answer
    case.check_end(answer, "end")


async def _check_whole_text(case: _MatrixCase, stream: bool) -> None:
    await _check_text(case, False)


async def _check_streamed_text(case: _MatrixCase, stream: bool) -> None:
    await _check_text(case, True)


async def _check_tools(case: _MatrixCase, stream: bool) -> None:
    features = RequestedFeatures(text="weather?", tools=True)
    answer = await case.send_request(features, stream=stream)
    assert answer.calls == [PARIS], answer
    case.check_end(answer, "tools")
    final_answer = await case.send_request(
        replace(features, previous_answer=answer, results=("sunny",)), stream=stream
    )
    assert (final_answer.text, final_answer.calls) == ("sunny", []), final_answer


async def _check_parallel_calls(case: _MatrixCase, stream: bool) -> None:
    features = RequestedFeatures(text="weather of both?", tools=True)
    answer = await case.send_request(features, stream=stream)
    assert answer.calls == [PARIS, ROME], answer
    case.check_end(answer, "tools")
    final_answer = await case.send_request(
        replace(features, previous_answer=answer, results=("sunny", "rain")), stream=stream
    )
    assert final_answer.text == "sunny and rain", final_answer


async def _check_vision(case: _MatrixCase, stream: bool) -> None:
    assert (await case.send_request(RequestedFeatures(picture=PICTURE), stream=stream)).text == SEEN


async def _check_vision_url(case: _MatrixCase, stream: bool) -> None:
    assert (
        await case.send_request(RequestedFeatures(picture=case.picture_url), stream=stream)
    ).text == SEEN


async def _check_schema(case: _MatrixCase, stream: bool) -> None:
    assert (
        await case.send_request(RequestedFeatures(has_schema=True), stream=stream)
    ).text == '{"city": "Paris"}'


async def _check_any_json(case: _MatrixCase, stream: bool) -> None:
    assert (
        await case.send_request(RequestedFeatures(wants_json=True), stream=stream)
    ).text == '{"any": "shape"}'


async def _check_stop(case: _MatrixCase, stream: bool) -> None:
    answer = await case.send_request(RequestedFeatures(stop="STOP"), stream=stream)
    assert answer.text.endswith("turns "), answer
    case.check_end(answer, "stop")


async def _check_thinking(case: _MatrixCase, stream: bool) -> None:
    answer = await case.send_request(RequestedFeatures(thinking=True), stream=stream)
    assert answer.thinking == THOUGHT, answer
    assert answer.text.endswith("hello"), answer


async def _check_forced_call(case: _MatrixCase, stream: bool) -> None:
    answer = await case.send_request(RequestedFeatures(tools=True, forces_tool=True), stream=stream)
    assert answer.calls == [PARIS], answer


async def _check_single_call(case: _MatrixCase, stream: bool) -> None:
    answer = await case.send_request(
        RequestedFeatures(text="weather of both?", tools=True, allows_single_tool_call=True),
        stream=stream,
    )
    assert answer.calls == [PARIS], answer


async def _check_seed(case: _MatrixCase, stream: bool) -> None:
    assert (await case.send_request(RequestedFeatures(seed=0), stream=stream)).text == "seed 0"


async def _check_cached_tokens(case: _MatrixCase, stream: bool) -> None:
    answer = await case.send_request(RequestedFeatures(), stream=stream)
    if answer.cached is None:
        raise _NotExpressible
    assert answer.cached == (0 if case.backend == "Ollama" else CACHED), answer


FEATURES: Mapping[str, Callable[[_MatrixCase, bool], Awaitable[None]]] = {
    "text": _check_whole_text,
    "stream": _check_streamed_text,
    "tools": _check_tools,
    "parallel tools": _check_parallel_calls,
    "vision": _check_vision,
    "schema": _check_schema,
    "stop": _check_stop,
    "thinking": _check_thinking,
    "picture by URL": _check_vision_url,
    "any JSON": _check_any_json,
    "forced tool": _check_forced_call,
    "one call at a time": _check_single_call,
    "seed": _check_seed,
    "cached tokens": _check_cached_tokens,
}


async def run_matrix(folder: Path) -> Matrix:
    """Return all cells, each tested with and without streaming.

    Args:
        folder: the data folder of the models app.

    Raises:
        AssertionError: an answer is not as requested, or a refusal names no field.
    """
    matrix: dict[tuple[str, str], dict[str, MatrixCell]] = {}
    async with (
        WireServer().running() as server,
        serving(folder, *_build_backend_configs(server.url)) as models_app,
        open_clients(models_app.url, models_app.api_key) as protocol_clients,
    ):
        for protocol, client in protocol_clients.items():
            for backend in BACKENDS:
                case = _MatrixCase(
                    protocol=protocol,
                    backend=backend,
                    client=client,
                    picture_url=f"{server.url}/picture.png",
                )
                matrix[protocol, backend] = {
                    name: await _test_cell(case, name) for name in FEATURES
                }
    return matrix


async def _test_cell(case: _MatrixCase, feature_name: str) -> MatrixCell:
    whole_cell, streamed_cell = [
        await _test_once(case, feature_name, stream) for stream in (False, True)
    ]
    assert whole_cell == streamed_cell, (
        f"{case.protocol} to {case.backend}, {feature_name}: {whole_cell} or {streamed_cell}"
    )
    return whole_cell


async def _test_once(case: _MatrixCase, feature_name: str, stream: bool) -> MatrixCell:
    try:
        await FEATURES[feature_name](case, stream)
    except Refused as refused:
        message = f"{case.protocol} to {case.backend}, {feature_name}: {refused}"
        assert refused.status == 400, message
        assert refused.field is not None, message
        return MatrixCell(field=refused.field)
    except _NotExpressible:
        return MatrixCell()
    except AssertionError as error:
        raise AssertionError(
            f"{case.protocol} to {case.backend}, {feature_name}: {error}"
        ) from error
    return MatrixCell(passed=True)


def _build_backend_configs(url: str) -> list[dict[str, Any]]:
    servers: dict[str, dict[str, Any]] = {
        "Claude": {"type": "anthropic", "base_url": url, "api_key_env": "LLAMA_KEY"},
        "Ollama": {"type": "ollama", "hosts": [url]},
        "OpenAI-compatible": {"type": "openai", "base_url": f"{url}/v1"},
    }
    capabilities = {
        "context": 100_000,
        "tools": True,
        "vision": True,
        "schema": True,
        "thinking": True,
    }
    price = {"input": 0, "output": 0}
    return [
        {
            "name": server["type"],
            **server,
            "models": [
                {"name": _MODELS[server_name], "upstream": "up", "price": price, **capabilities}
            ],
        }
        for server_name, server in servers.items()
    ]


def build_page(matrix: Matrix) -> str:
    """Return the matrix as a page of the documentation."""
    lines = [
        "# Any client on any model",
        "",
        "<!-- Written by `make docs` from tests/integration/text/matrix.py. -->",
        "",
        "Each cell was asked through the protocol's official SDK, whole and streamed, of a server",
        "that speaks the back end's wire and does only what it was asked for in its own words.",
        "",
        "- **yes**: it arrives, and what the model makes of it comes back.",
        "- **400 `field`**: the back end has no word for it. The request is refused by that name,",
        "  or answered by another model where the name stands for several.",
        "- **no word**: the client's protocol has no word for it.",
        "",
    ]
    for features in (list(FEATURES)[:8], list(FEATURES)[8:]):
        lines.append("| client → back end | " + " | ".join(features) + " |")
        lines.append("|---" * (len(features) + 1) + "|")
        for (protocol, backend), cells in matrix.items():
            row = [f"{protocol} → {backend}", *(str(cells[name]) for name in features)]
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    lines += [
        "`text` is a system prompt and a conversation of three turns; `tools` goes on with the",
        "result. Where the model itself lacks an ability (`tools`, `vision`, `schema`, `thinking` in",
        "`user_config`), every cell of that column is a 400 that names the asking member.",
        "",
        "Dropped on the way to another protocol, since they change nothing in the answer:",
        "",
        "| client | members |",
        "|---|---|",
        *(
            f"| {protocol} | {', '.join(f'`{name}`' for name in names)} |"
            for protocol, names in DROPPED.items()
        ),
        "",
        "So are names of speakers, the detail of a picture, markers of a prompt cache in messages and",
        "tools, and options of how Ollama runs a model, such as `num_gpu`. Everything else that another protocol can't carry is refused by its name",
        "(`tests/unit/text/protocol/test_members.py` tries every member of the SDKs). To a back end of",
        "the client's own protocol the bytes pass as they are; no back end has the Responses API as",
        "its own.",
    ]
    return "\n".join(lines) + "\n"
