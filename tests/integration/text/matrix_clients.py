"""Wraps the official SDK of each protocol in one interface for requests and answers."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import ollama
import openai

from tests.integration.text.matrix_features import (
    HISTORY,
    SYSTEM,
    Client,
    ReceivedAnswer,
    Refused,
    RequestedFeatures,
)
from tests.integration.text.matrix_responses import ResponsesClient
from tests.integration.text.wires.script import PICTURE, SCHEMA


@asynccontextmanager
async def clients(url: str, key: str) -> AsyncIterator[Mapping[str, Client]]:
    """Yield the clients by protocol; ``url`` has no ``/v1``."""
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as one,
        anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as two,
    ):
        headers = {"authorization": f"Bearer {key}"}
        three = ollama.AsyncClient(host=f"{url}/v1/ollama", headers=headers)
        yield {
            "OpenAI": _OpenAI(one),
            "Responses": ResponsesClient(one),
            "Anthropic": _Anthropic(two),
            "Ollama": _Ollama(three),
        }
        await three.close()


class _OpenAI:
    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        self._sdk = sdk

    async def ask(
        self, model: str, wish: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        body: dict[str, Any] = {"model": model, "messages": self._messages(wish)}
        if wish.tools:
            function = {"name": "weather", "parameters": SCHEMA}
            body["tools"] = [{"type": "function", "function": function}]
        if wish.forced:
            body["tool_choice"] = "required"
        if wish.single:
            body["parallel_tool_calls"] = False
        if wish.schema:
            schema = {"name": "city", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if wish.json:
            body["response_format"] = {"type": "json_object"}
        if wish.stop is not None:
            body["stop"] = [wish.stop]
        if wish.thinking:
            body["reasoning_effort"] = "low"
        if wish.seed is not None:
            body["seed"] = wish.seed
        try:
            if not stream:
                return self._whole(await self._sdk.chat.completions.create(**body))
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            events = await self._sdk.chat.completions.create(**body)
            return await self._streamed(events)
        except openai.APIStatusError as error:
            raise Refused(error.status_code, str(error.code), error.param) from None

    def _messages(self, wish: RequestedFeatures) -> list[Any]:
        messages: list[Any] = []
        if wish.history:
            messages += [{"role": "system", "content": SYSTEM}]
            messages += [{"role": role, "content": text} for role, text in HISTORY]
        content: Any = wish.text
        if wish.picture is not None:
            url = wish.picture
            if isinstance(url, bytes):
                url = f"data:image/png;base64,{base64.b64encode(url).decode()}"
            content = [
                {"type": "text", "text": wish.text},
                {"type": "image_url", "image_url": {"url": url}},
            ]
        messages.append({"role": "user", "content": content})
        if wish.heard is not None:
            messages.append(wish.heard.said)
            for call, result in zip(wish.heard.said["tool_calls"], wish.results, strict=True):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return messages

    def _whole(self, answer: Any) -> ReceivedAnswer:
        message = answer.choices[0].message
        heard = ReceivedAnswer(
            text=message.content or "",
            thinking=getattr(message, "reasoning_content", ""),
            calls=[
                (call.function.name, json.loads(call.function.arguments))
                for call in message.tool_calls or ()
            ],
            reason=answer.choices[0].finish_reason,
            said=message.to_dict(),
        )
        self._count(heard, answer.usage)
        return heard

    async def _streamed(self, events: Any) -> ReceivedAnswer:
        heard = ReceivedAnswer()
        calls: list[dict[str, Any]] = []
        async for chunk in events:
            if chunk.usage is not None:
                self._count(heard, chunk.usage)
            for choice in chunk.choices:
                heard.text += choice.delta.content or ""
                heard.thinking += getattr(choice.delta, "reasoning_content", None) or ""
                heard.reason = choice.finish_reason or heard.reason
                for call in choice.delta.tool_calls or ():
                    if call.index == len(calls):
                        calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
                    calls[call.index]["arguments"] += call.function.arguments or ""
        heard.calls = [(call["name"], json.loads(call["arguments"])) for call in calls]
        tools = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in calls
        ]
        heard.said = {"role": "assistant", "content": heard.text, "tool_calls": tools}
        return heard

    def _count(self, heard: ReceivedAnswer, usage: Any) -> None:
        heard.prompt, heard.output = usage.prompt_tokens, usage.completion_tokens
        heard.cached = usage.prompt_tokens_details.cached_tokens


class _Anthropic:
    def __init__(self, sdk: anthropic.AsyncAnthropic) -> None:
        self._sdk = sdk

    async def ask(
        self, model: str, wish: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        if wish.seed is not None or wish.json:
            return None
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": 4000,
            "messages": self._messages(wish),
        }
        if wish.history:
            body["system"] = SYSTEM
        if wish.tools:
            body["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
        if wish.forced:
            body["tool_choice"] = {"type": "any"}
        if wish.single:
            body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        if wish.schema:
            body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
        if wish.stop is not None:
            body["stop_sequences"] = [wish.stop]
        if wish.thinking:
            body["thinking"] = {"type": "enabled", "budget_tokens": 2000}
        try:
            if not stream:
                return self._heard(await self._sdk.messages.create(**body))
            async with self._sdk.messages.stream(**body) as events:
                return self._heard(await events.get_final_message())
        except anthropic.APIStatusError as error:
            assert isinstance(error.body, dict)
            told = error.body["error"]
            raise Refused(error.status_code, told["code"], told.get("field")) from None

    def _messages(self, wish: RequestedFeatures) -> list[Any]:
        messages: list[Any] = []
        if wish.history:
            messages += [{"role": role, "content": text} for role, text in HISTORY]
        content: list[Any] = [{"type": "text", "text": wish.text}]
        if isinstance(wish.picture, bytes):
            data = base64.b64encode(wish.picture).decode()
            source = {"type": "base64", "media_type": "image/png", "data": data}
            content.append({"type": "image", "source": source})
        elif wish.picture is not None:
            content.append({"type": "image", "source": {"type": "url", "url": wish.picture}})
        messages.append({"role": "user", "content": content})
        if wish.heard is not None:
            uses = [block for block in wish.heard.said if block.type == "tool_use"]
            messages.append({"role": "assistant", "content": wish.heard.said})
            results = [
                {"type": "tool_result", "tool_use_id": use.id, "content": result}
                for use, result in zip(uses, wish.results, strict=True)
            ]
            messages.append({"role": "user", "content": results})
        return messages

    def _heard(self, message: Any) -> ReceivedAnswer:
        usage = message.usage
        heard = ReceivedAnswer(
            reason=message.stop_reason,
            said=message.content,
            prompt=usage.input_tokens + usage.cache_read_input_tokens,
            cached=usage.cache_read_input_tokens,
            output=usage.output_tokens,
        )
        for block in message.content:
            match block.type:
                case "text":
                    heard.text += block.text
                case "thinking":
                    heard.thinking += block.thinking
                case "tool_use":
                    heard.calls.append((block.name, block.input))
        return heard


class _Ollama:
    def __init__(self, sdk: ollama.AsyncClient) -> None:
        self._sdk = sdk

    async def ask(
        self, model: str, wish: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        if wish.forced or wish.single or isinstance(wish.picture, str):
            return None
        body: dict[str, Any] = {"model": model, "messages": self._messages(wish)}
        options: dict[str, Any] = {}
        if wish.tools:
            function = {"name": "weather", "parameters": SCHEMA}
            body["tools"] = [{"type": "function", "function": function}]
        if wish.schema or wish.json:
            body["format"] = SCHEMA if wish.schema else "json"
        if wish.stop is not None:
            options["stop"] = [wish.stop]
        if wish.seed is not None:
            options["seed"] = wish.seed
        if wish.thinking:
            body["think"] = True
        body |= {"options": options, "stream": stream}
        try:
            return self._heard([piece async for piece in self._chat(body)])
        except ollama.ResponseError as error:
            # Of an error the SDK keeps the sentence only.
            told = (await self._sdk._client.post("/api/chat", json=body)).json()
            raise Refused(error.status_code, told["code"], told.get("field")) from None

    async def _chat(self, body: dict[str, Any]) -> AsyncIterator[Any]:
        # The SDK's own types keep four members of a tool's schema and drop the rest.
        ask = (ollama.ChatResponse, "POST", "/api/chat")
        if body["stream"]:
            async for piece in await self._sdk._request(*ask, json=body, stream=True):
                yield piece
        else:
            yield await self._sdk._request(*ask, json=body)

    def _messages(self, wish: RequestedFeatures) -> list[Any]:
        messages: list[Any] = []
        if wish.history:
            messages += [{"role": "system", "content": SYSTEM}]
            messages += [{"role": role, "content": text} for role, text in HISTORY]
        turn: dict[str, Any] = {"role": "user", "content": wish.text}
        if isinstance(wish.picture, bytes):
            turn["images"] = [base64.b64encode(PICTURE).decode()]
        messages.append(turn)
        if wish.heard is not None:
            messages.append(wish.heard.said)
            messages += [
                {"role": "tool", "tool_name": name, "content": result}
                for (name, _), result in zip(wish.heard.calls, wish.results, strict=True)
            ]
        return messages

    def _heard(self, pieces: list[Any]) -> ReceivedAnswer:
        heard = ReceivedAnswer()
        made: list[Any] = []
        for piece in pieces:
            heard.text += piece.message.content or ""
            heard.thinking += piece.message.thinking or ""
            made += piece.message.tool_calls or ()
        heard.calls = [(call.function.name, dict(call.function.arguments)) for call in made]
        last = pieces[-1]
        heard.reason = last.done_reason
        heard.prompt, heard.output = last.prompt_eval_count, last.eval_count
        calls = [
            {"function": {"name": name, "arguments": arguments}} for name, arguments in heard.calls
        ]
        heard.said = {"role": "assistant", "content": heard.text, "tool_calls": calls}
        return heard
