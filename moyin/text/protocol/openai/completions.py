"""Implements the codec of ``POST /v1/completions``, OpenAI's older call that continues a text.

Back ends with OpenAI's API get the request unchanged. For other back ends, and for those that
support only chat completions, the prompt becomes the only message of a chat.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import to_json

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints, estimate_tokens
from moyin.errors import UnsupportedFeature
from moyin.http.sse import encode_event
from moyin.http.validation import (
    count_text_bytes,
    find_unsupported_field,
    new_malformed_response_error,
    parse_object,
    require_text,
    validate,
)
from moyin.text.protocol.codec import Turn
from moyin.text.protocol.openai import wire
from moyin.text.protocol.openai.codec import BaseCodec, BaseGenerationRequest
from moyin.text.protocol.openai.request_to_domain import (
    DROPPED_MEMBERS,
    convert_sampling,
    convert_stop,
    new_unsupported_error,
)
from moyin.text.protocol.openai.response import (
    FINISH_REASONS,
    STOP_REASONS,
    read_stop_sequence,
    usage_to_client,
    usage_to_domain,
)
from moyin.text.protocol.openai.stream import DONE_EVENT

# Text completions have no finish reason for tool calls, although a model may write them without
# being offered tools.
_FINISH_REASONS: Mapping[chat.StopReason, str] = {
    **FINISH_REASONS,
    chat.StopReason.TOOL_USE: "stop",
}


@dataclass(frozen=True, slots=True)
class ParsedCompletionRequest(BaseGenerationRequest):
    """A validated request of ``POST /v1/completions``."""

    body: wire.CompletionBody

    @property
    def _choice_count(self) -> int:
        return self.body.choice_count

    @property
    def picture_urls(self) -> tuple[str, ...]:
        return ()

    def with_pictures(self, pictures: Mapping[str, chat.Image]) -> Self:
        return self

    def derive_needs(self) -> Needs:
        body, prompts = self.body, self.body.prompts
        prompt_token_counts = [
            estimate_tokens(i) if isinstance(i, str) else len(i) for i in prompts
        ]
        return Needs(
            prompt_tokens=sum(prompt_token_counts) + estimate_tokens(body.suffix or ""),
            longest_input=max(prompt_token_counts) if len(prompt_token_counts) > 1 else None,
            max_tokens=body.max_output_tokens,
            choices=len(prompt_token_counts) * max(body.n or 1, body.best_of or 1),
        )

    def derive_constraints(self) -> ResponseConstraints:
        return ResponseConstraints(plain=_find_untranslatable_field(self.body) is None)

    def select_recent_turns(self) -> tuple[Turn, ...]:
        prompt = _read_prompt(self.body)
        return (("user", prompt),) if prompt else ()

    def to_domain(self, model: str) -> chat.ChatRequest:
        """Translate the request to a chat whose only message is the prompt.

        Raises:
            UnsupportedFeature: a chat cannot express a member; the error names it.
        """
        body = self.body
        prompt = _read_prompt(body)
        if prompt is None:
            raise UnsupportedFeature(
                "prompt: lists of prompts and token ids need a back end that supports OpenAI's "
                "completions API; send a single string",
                field="prompt",
            )
        field = _find_untranslatable_field(body)
        field = field or find_unsupported_field(body, DROPPED_MEMBERS)
        if field is not None:
            raise new_unsupported_error(field)
        return chat.ChatRequest(
            model=model,
            messages=(chat.Message(role=chat.Role.USER, parts=(chat.Text(text=prompt),)),),
            max_tokens=body.max_tokens,
            stop=convert_stop(body),
            sampling=convert_sampling(body),
            user=body.user,
        )

    def create_stream_writer(self) -> CompletionStreamWriter:
        return CompletionStreamWriter(created=int(time.time()), include_usage=self.wants_usage)

    def encode_response(self, response: chat.ChatResponse | chat.EmbeddingResponse) -> bytes:
        assert isinstance(response, chat.ChatResponse)
        first_members = _build_first_members(response.id, response.model, int(time.time()))
        choice = _build_choice(response.text, response.stop)
        return to_json(
            first_members | {"choices": [choice], "usage": usage_to_client(response.usage)}
        )


class OpenAICompletionsCodec(BaseCodec):
    """The codec of ``POST /v1/completions``."""

    path = "/completions"

    def parse(self, body: bytes) -> ParsedCompletionRequest:
        data = parse_object(body)
        return ParsedCompletionRequest(body, data, validate(wire.CompletionBody, data))

    def read_response(self, body: Mapping[str, Any]) -> chat.ChatResponse:
        return completion_to_domain(body)

    def count_output_bytes(self, body: Mapping[str, Any]) -> int:
        choices = body.get("choices")
        return count_text_bytes(
            [choice.get("text") for choice in choices or () if isinstance(choice, dict)]
        )

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("choices"), list):
            raise new_malformed_response_error()

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        if estimated_usage is None:
            return raw
        body["usage"] = usage_to_client(estimated_usage)
        return to_json(body)


class CompletionStreamWriter:
    """Encodes the deltas of a chat as events of a text completion, without the model's thinking."""

    def __init__(self, *, created: int, include_usage: bool) -> None:
        self._created = created
        self._include_usage = include_usage
        self._head: dict[str, Any] = {}

    def write(self, delta: chat.Delta) -> bytes:
        """Encode ``delta`` as events, or as no bytes if text completions have no event for it."""
        match delta:
            case chat.Started():
                self._head = _build_first_members(delta.id, delta.model, self._created)
            case chat.TextDelta():
                return self._encode_text(delta.text)
            case chat.Finished():
                return self._encode_end(delta)
        return b""

    def _encode_text(self, text: str, stop: chat.StopReason | None = None) -> bytes:
        return encode_event(self._head | {"choices": [_build_choice(text, stop)]})

    def _encode_end(self, delta: chat.Finished) -> bytes:
        events = self._encode_text("", delta.stop)
        if self._include_usage:
            usage = usage_to_client(delta.usage)
            events += encode_event(self._head | {"choices": [], "usage": usage})
        return events + DONE_EVENT


def completion_to_domain(body: Mapping[str, Any]) -> chat.ChatResponse:
    """Translate a whole response of ``POST /v1/completions`` to a `ChatResponse`.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        choice = body["choices"][0]
        text = require_text(choice["text"])
        stop = STOP_REASONS.get(choice.get("finish_reason") or "stop", chat.StopReason.END)
        stop_sequence = read_stop_sequence(choice)
        if stop is chat.StopReason.END and stop_sequence is not None:
            stop = chat.StopReason.STOP_SEQUENCE
        return chat.ChatResponse(
            id=str(body.get("id", "")),
            model=str(body.get("model", "")),
            parts=(chat.Text(text=text),) if text else (),
            stop=stop,
            stop_sequence=stop_sequence,
            usage=usage_to_domain(body) or Usage(),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise new_malformed_response_error() from None


def _read_prompt(body: wire.CompletionBody) -> str | None:
    """Return the prompt, or None if there are several or it consists of token ids."""
    prompts = body.prompts
    prompt = prompts[0] if len(prompts) == 1 else None
    return prompt if isinstance(prompt, str) else None


def _find_untranslatable_field(body: wire.CompletionBody) -> str | None:
    """Return the name of the first member whose value a chat cannot express, or None."""
    if _read_prompt(body) is None:
        return "prompt"
    set_by_member: Mapping[str, bool] = {
        "n": (body.n or 1) > 1,
        "best_of": (body.best_of or 1) > 1,
        "echo": bool(body.echo),
        # 0 requests the probabilities of the written tokens only.
        "logprobs": body.logprobs is not None and body.logprobs is not False,
        "suffix": bool(body.suffix),
        "max_tokens": body.max_tokens == 0,
    }
    return next((name for name, is_set in set_by_member.items() if is_set), None)


def _build_first_members(completion_id: str, model: str, created: int) -> dict[str, Any]:
    return {"id": completion_id, "object": "text_completion", "created": created, "model": model}


def _build_choice(text: str, stop: chat.StopReason | None) -> dict[str, Any]:
    finish_reason = None if stop is None else _FINISH_REASONS[stop]
    return {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
