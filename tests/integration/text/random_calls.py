"""Generates random calls of all protocols from a seed."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.integration.text.wires.script import PICTURE, SCHEMA

MODELS = ("auto", "auto", "auto", "work", "cheap", "m-claude", "m-ollama", "m-openai", "m-plain")
_DATA = base64.b64encode(PICTURE).decode()
# A schema that Claude refuses, and which other servers hold a model to.
_BOUNDED = {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 7}}}
_WORDS = [
    "river",
    "stone",
    "lamp",
    "window",
    "seven",
    "paper",
    "garden",
    "quiet",
    "engine",
    "letter",
    "orange",
    "winter",
]


@dataclass(frozen=True, kw_only=True)
class RandomCall:
    """A call: its protocol's name for `POST /v1/route`, its path below `/v1`, and the body."""

    protocol: str
    path: str
    body: dict[str, Any]


class RandomCalls:
    """Generates calls from a seed; the same seed gives the same calls.

    Args:
        picture_url: the URL of a picture, which some calls contain.
    """

    def __init__(self, seed: int, picture_url: str) -> None:
        self._random = random.Random(seed)
        self._picture_url = picture_url
        self._makers = (
            self._draw_openai, self._draw_openai, self._draw_anthropic, self._draw_anthropic,
            self._draw_responses, self._draw_responses, self._draw_ollama, self._draw_ollama,
            self._draw_generate, self._draw_completions, self._draw_embeddings,
        )  # fmt: skip

    def draw_call(self) -> RandomCall:
        return self._random.choice(self._makers)()

    def _is_chosen(self, share: float) -> bool:
        return self._random.random() < share

    def _draw_common_members(self) -> dict[str, Any]:
        """Return random values of the members that have the same name in all protocols."""
        body: dict[str, Any] = {"model": self._random.choice(MODELS)}
        if self._is_chosen(0.4):
            body["stream"] = self._is_chosen(0.6)
        return body

    def _draw_text(self) -> str:
        word_count = self._random.choice((3, 3, 12, 12, 5_000))
        words = " ".join(self._random.choices(_WORDS, k=word_count))
        return f"{words} {'weather? ' * self._is_chosen(0.5)}{self._random.random()}"

    def _draw_picture(self, *, allow_urls: bool = True) -> str | None:
        """Return a picture for one call in five, otherwise None.

        The picture is a data URL or, if ``allow_urls``, sometimes the URL of a picture.
        """
        if not self._is_chosen(0.2):
            return None
        return (
            self._picture_url
            if allow_urls and self._is_chosen(0.4)
            else f"data:image/png;base64,{_DATA}"
        )

    def _add_members(self, body: dict[str, Any], share: float, members: Mapping[str, Any]) -> None:
        """Add each of ``members`` to the body with the probability ``share``, from 0 to 1."""
        body |= {name: value for name, value in members.items() if self._is_chosen(share)}

    def _draw_schema(self) -> dict[str, Any]:
        return self._random.choice((SCHEMA, SCHEMA, _BOUNDED))

    def _draw_openai(self) -> RandomCall:
        body = self._draw_common_members()
        content: Any = self._draw_text()
        if (url := self._draw_picture()) is not None:
            content = [
                {"type": "text", "text": content},
                {"type": "image_url", "image_url": {"url": url}},
            ]
        body["messages"] = [{"role": "user", "content": content}]
        if self._is_chosen(0.2):
            function_call = {
                "name": "weather",
                "arguments": self._random.choice(('{"city":"Rome"}', "[1]")),
            }
            tool_calls = [{"id": "c1", "type": "function", "function": function_call}]
            tool_message = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
            body["messages"] += [{"role": "assistant", "tool_calls": tool_calls}, tool_message]
        if self._is_chosen(0.3):
            function = {"name": "weather", "parameters": SCHEMA}
            self._add_members(function, 0.3, {"strict": True})
            body["tools"] = [{"type": "function", "function": function}]
            self._add_members(
                body, 0.3, {"tool_choice": self._random.choice(("auto", "none", "required"))}
            )
            self._add_members(body, 0.2, {"parallel_tool_calls": self._is_chosen(0.5)})
        elif self._is_chosen(0.3):
            schema = {"name": "city", "schema": self._draw_schema()}
            response_format = self._random.choice(
                ({"type": "json_object"}, {"type": "json_schema", "json_schema": schema})
            )
            body["response_format"] = response_format
        self._add_members(body, 0.15, self._draw_options() | {"n": self._random.choice((1, 2, 3))})
        self._add_members(body, 0.1, {"verbosity": self._random.choice(("low", "medium"))})
        self._add_members(
            body, 0.1, {"reasoning_effort": self._random.choice(("none", "low", "high"))}
        )
        self._add_members(body, 0.1, {"logit_bias": {"1": 1}, "user": "ada", "stop": ["STOP"]})
        self._add_members(body, 0.5, {"max_tokens": self._random.choice((5, 500, 200_000))})
        return RandomCall(protocol="openai", path="chat/completions", body=body)

    def _draw_options(self) -> dict[str, Any]:
        return {
            "temperature": self._random.choice((0, 0.5, 1.5)),
            "top_p": 0.9,
            "seed": 7,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.0,
        }

    def _draw_anthropic(self) -> RandomCall:
        body = self._draw_common_members() | {
            "max_tokens": self._random.choice((5, 500, 2_000, 200_000))
        }
        content: list[dict[str, Any]] = [{"type": "text", "text": self._draw_text()}]
        if (url := self._draw_picture()) is not None:
            source = (
                {"type": "base64", "media_type": "image/png", "data": _DATA}
                if url.startswith("data:")
                else {"type": "url", "url": url}
            )
            content.append({"type": "image", "source": source})
        if self._is_chosen(0.1):
            source = {"type": "url", "url": self._picture_url}
            content.append({"type": "document", "source": source})
        body["messages"] = [{"role": "user", "content": content}]
        if self._is_chosen(0.3):
            body["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
            tool_choice = {"type": self._random.choice(("auto", "any", "none"))}
            self._add_members(body, 0.3, {"tool_choice": tool_choice})
        elif self._is_chosen(0.3):
            body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
        thinking = {"type": "enabled", "budget_tokens": 1024}
        self._add_members(
            body, 0.15, {"thinking": self._random.choice((thinking, {"type": "disabled"}))}
        )
        self._add_members(
            body, 0.15, {"system": "Be brief.", "stop_sequences": ["STOP"], "top_k": 5}
        )
        self._add_members(
            body, 0.1, {"service_tier": "auto", "container": "c1", "temperature": 0.5}
        )
        return RandomCall(protocol="anthropic", path="messages", body=body)

    def _draw_responses(self) -> RandomCall:
        body = self._draw_common_members()
        content: list[dict[str, Any]] = [{"type": "input_text", "text": self._draw_text()}]
        if (url := self._draw_picture()) is not None:
            content.append({"type": "input_image", "image_url": url, "detail": "auto"})
        body["input"] = [{"type": "message", "role": "user", "content": content}]
        if self._is_chosen(0.3):
            body["tools"] = [{"type": "function", "name": "weather", "parameters": SCHEMA}]
            self._add_members(
                body, 0.3, {"tool_choice": self._random.choice(("auto", "none", "required"))}
            )
        elif self._is_chosen(0.3):
            text_format = {"type": "json_schema", "name": "city", "schema": self._draw_schema()}
            body["text"] = {"format": self._random.choice((text_format, {"type": "json_object"}))}
        self._add_members(
            body, 0.15, {"instructions": "Be brief.", "temperature": 1.5, "top_p": 0.9}
        )
        self._add_members(
            body, 0.1, {"reasoning": {"effort": self._random.choice(("none", "low"))}}
        )
        self._add_members(body, 0.1, {"top_logprobs": 2, "store": False, "user": "ada"})
        self._add_members(body, 0.5, {"max_output_tokens": self._random.choice((16, 500, 200_000))})
        return RandomCall(protocol="responses", path="responses", body=body)

    def _draw_ollama_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        self._add_members(
            options, 0.15, self._draw_options() | {"min_p": 0.1, "repeat_penalty": 1.1}
        )
        self._add_members(options, 0.3, {"num_predict": self._random.choice((5, 500, -1))})
        self._add_members(options, 0.1, {"mirostat": 1, "num_gpu": 1})
        return options

    def _draw_ollama(self) -> RandomCall:
        message: dict[str, Any] = {"role": "user", "content": self._draw_text()}
        if self._draw_picture(allow_urls=False) is not None:
            message["images"] = [_DATA]
        body = self._draw_common_members() | {
            "messages": [message],
            "options": self._draw_ollama_options(),
        }
        if self._is_chosen(0.3):
            function = {"name": "weather", "parameters": SCHEMA}
            body["tools"] = [{"type": "function", "function": function}]
        elif self._is_chosen(0.3):
            body["format"] = self._random.choice(("json", self._draw_schema()))
        self._add_members(body, 0.15, {"think": self._random.choice((True, False, "low"))})
        self._add_members(body, 0.1, {"keep_alive": "1m", "template": "x"})
        return RandomCall(protocol="ollama", path="ollama/api/chat", body=body)

    def _draw_generate(self) -> RandomCall:
        body = self._draw_common_members() | {
            "prompt": self._draw_text(),
            "options": self._draw_ollama_options(),
        }
        self._add_members(body, 0.15, {"system": "Be brief.", "format": "json", "think": True})
        self._add_members(body, 0.1, {"raw": True, "images": [_DATA]})
        return RandomCall(protocol="generate", path="ollama/api/generate", body=body)

    def _draw_completions(self) -> RandomCall:
        prompt = self._random.choice((self._draw_text(), [self._draw_text(), "b"], [1, 2, 3]))
        body = self._draw_common_members() | {"prompt": prompt}
        self._add_members(
            body, 0.15, self._draw_options() | {"n": 2, "echo": True, "suffix": "x", "best_of": 1}
        )
        self._add_members(body, 0.5, {"max_tokens": self._random.choice((5, 500))})
        return RandomCall(protocol="completions", path="completions", body=body)

    def _draw_embeddings(self) -> RandomCall:
        model = self._random.choice(("auto", "v-ollama", "v-openai", "m-claude"))
        text = self._draw_text()
        embedding_input = self._random.choice((text, [text, "b"], [1, 2, 3]))
        body = {"model": model, "input": embedding_input}
        self._add_members(body, 0.2, {"dimensions": 3, "encoding_format": "base64", "user": "ada"})
        return RandomCall(protocol="embeddings", path="embeddings", body=body)
