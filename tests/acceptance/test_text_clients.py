"""Tests third-party text clients against a real farm."""

from __future__ import annotations

import json
import shutil
import subprocess
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from tests.stack import RunningStack

HELLO: Any = {"role": "user", "content": "Say hello."}


def test_the_openai_sdk_streams(gateway: RunningStack) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.api_key) as client:
        stream = client.chat.completions.create(
            model="auto",
            messages=[HELLO],
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    usage = chunks[-1].usage
    assert usage is not None
    assert 0 < usage.completion_tokens <= 16


def test_openai_response_names_backend_and_cost(gateway: RunningStack) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.api_key) as client:
        raw_response = client.chat.completions.with_raw_response.create(
            model="auto", messages=[HELLO], max_tokens=8
        )
        assert raw_response.parse().choices[0].message.content
    assert raw_response.headers["x-moyin-backend"]
    assert raw_response.headers["x-moyin-route"] == "free"
    assert Decimal(raw_response.headers["x-moyin-cost-usd"]) == 0


def test_the_anthropic_sdk_streams(gateway: RunningStack) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key=gateway.api_key) as client,
        client.messages.stream(model="auto", messages=[HELLO], max_tokens=16) as stream,
    ):
        text = "".join(stream.text_stream)
        final_message = stream.get_final_message()
    assert text
    assert final_message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < final_message.usage.output_tokens <= 16


def test_curl_streams_an_answer(gateway: RunningStack) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.fail("curl is missing: install it, for example with `apt-get install curl`")
    body = {"model": "auto", "messages": [HELLO], "max_tokens": 8, "stream": True}
    process = subprocess.run(
        [
            *(curl, "-sSN", f"{gateway.url}/v1/chat/completions", "-d", json.dumps(body)),
            *("-H", f"Authorization: Bearer {gateway.api_key}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *events, last_event, cost_comment, remainder = process.stdout.split("\n\n")
    assert len(events) >= 2
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events)
    assert (last_event, remainder) == ("data: [DONE]", "")
    assert cost_comment == ": x-moyin-cost-usd=0"


@pytest.mark.parametrize("path", ["chat/completions", "messages"])
def test_an_unknown_model_is_an_error_of_the_clients_own_protocol(
    gateway: RunningStack, path: str
) -> None:
    if path == "messages":
        with (
            anthropic.Anthropic(base_url=gateway.url, api_key=gateway.api_key) as anthropic_client,
            pytest.raises(anthropic.NotFoundError, match="gpt-2"),
        ):
            anthropic_client.messages.create(model="gpt-2", messages=[HELLO], max_tokens=8)
    else:
        with (
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.api_key) as client,
            pytest.raises(openai.NotFoundError) as exc_info,
        ):
            client.chat.completions.create(model="gpt-2", messages=[HELLO])
        assert exc_info.value.code == "model_not_found"


def test_a_wrong_key_is_refused(gateway: RunningStack) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="moyin_wrong_key") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="auto", messages=[HELLO])
