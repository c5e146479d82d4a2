from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import MAX_TURNS, ProtocolCodec, Turn, select_newest_turns
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaEmbedCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec

CONVERSATION = (("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three"))
MESSAGES = [{"role": role, "content": text} for role, text in CONVERSATION]
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def select_turns(codec: ProtocolCodec, **body: Any) -> tuple[Turn, ...]:
    return codec.parse(json.dumps({"model": "auto", **body}).encode()).select_recent_turns()


def test_every_protocol_returns_the_same_turns() -> None:
    assert select_turns(OpenAICodec(), messages=MESSAGES) == CONVERSATION
    assert select_turns(OllamaChatCodec(), messages=MESSAGES) == CONVERSATION
    anthropic_turns = select_turns(
        AnthropicCodec(), system="be brief", messages=MESSAGES[1:], max_tokens=5
    )
    assert anthropic_turns == CONVERSATION
    generate_turns = select_turns(OllamaGenerateCodec(), system="be brief", prompt="one")
    assert generate_turns == CONVERSATION[:2]


def test_turns_contain_only_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, PICTURE, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    assert select_turns(OpenAICodec(), messages=messages) == (("user", "a\nb"),)
    blocks = [
        {"type": "tool_result", "tool_use_id": "t", "content": "42"},
        {"type": "text", "text": "and now?"},
    ]
    messages = [{"role": "user", "content": blocks}]
    turns = select_turns(AnthropicCodec(), messages=messages, max_tokens=5)
    assert turns == (("tool", "42"), ("user", "and now?"))
    messages = [{"role": "user", "content": blocks[:1]}]
    assert select_turns(AnthropicCodec(), messages=messages, max_tokens=5) == (("tool", "42"),)


@pytest.mark.parametrize("codec", [OpenAIEmbeddingsCodec(), OllamaEmbedCodec()])
def test_embeddings_have_no_turns(codec: ProtocolCodec) -> None:
    assert select_turns(codec, input=["one"]) == ()


def test_selection_of_newest_turns_stops_at_the_bound() -> None:
    def iterate_too_many_turns() -> Iterator[Turn]:
        for number in range(MAX_TURNS):
            yield "user", f"turn {number}"
        raise AssertionError("the codec read beyond the limit")

    assert [text for _, text in select_newest_turns(iterate_too_many_turns())] == [
        f"turn {number}" for number in reversed(range(MAX_TURNS))
    ]
    assert select_newest_turns([("user", ""), ("assistant", "a")]) == (("assistant", "a"),)
