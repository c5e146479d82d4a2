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
async def open_clients(url: str, key: str) -> AsyncIterator[Mapping[str, Client]]:
    """Yield the clients by protocol; ``url`` has no ``/v1``."""
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as openai_client,
        anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as anthropic_client,
    ):
        headers = {"authorization": f"Bearer {key}"}
        ollama_client = ollama.AsyncClient(host=f"{url}/v1/ollama", headers=headers)
        yield {
            "OpenAI": _OpenAI(openai_client),
            "Responses": ResponsesClient(openai_client),
            "Anthropic": _Anthropic(anthropic_client),
            "Ollama": _Ollama(ollama_client),
        }
        await ollama_client.close()


class _OpenAI:
    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        self._sdk = sdk

    async def send_request(
        self, model: str, features: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        body: dict[str, Any] = {"model": model, "messages": self._build_messages(features)}
        if features.tools:
            function = {"name": "weather", "parameters": SCHEMA}
            body["tools"] = [{"type": "function", "function": function}]
        if features.forces_tool:
            body["tool_choice"] = "required"
        if features.allows_single_tool_call:
            body["parallel_tool_calls"] = False
        if features.has_schema:
            schema = {"name": "city", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if features.wants_json:
            body["response_format"] = {"type": "json_object"}
        if features.stop is not None:
            body["stop"] = [features.stop]
        if features.thinking:
            body["reasoning_effort"] = "low"
        if features.seed is not None:
            body["seed"] = features.seed
        try:
            if not stream:
                return self._to_answer(await self._sdk.chat.completions.create(**body))
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            chunks = await self._sdk.chat.completions.create(**body)
            return await self._join_chunks(chunks)
        except openai.APIStatusError as error:
            raise Refused(error.status_code, str(error.code), error.param) from None

    def _build_messages(self, features: RequestedFeatures) -> list[Any]:
        messages: list[Any] = []
        if features.history:
            messages += [{"role": "system", "content": SYSTEM}]
            messages += [{"role": role, "content": text} for role, text in HISTORY]
        content: Any = features.text
        if features.picture is not None:
            url = features.picture
            if isinstance(url, bytes):
                url = f"data:image/png;base64,{base64.b64encode(url).decode()}"
            content = [
                {"type": "text", "text": features.text},
                {"type": "image_url", "image_url": {"url": url}},
            ]
        messages.append({"role": "user", "content": content})
        if features.previous_answer is not None:
            messages.append(features.previous_answer.message)
            for call, result in zip(
                features.previous_answer.message["tool_calls"], features.results, strict=True
            ):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return messages

    def _to_answer(self, completion: Any) -> ReceivedAnswer:
        message = completion.choices[0].message
        received_answer = ReceivedAnswer(
            text=message.content or "",
            thinking=getattr(message, "reasoning_content", ""),
            calls=[
                (call.function.name, json.loads(call.function.arguments))
                for call in message.tool_calls or ()
            ],
            reason=completion.choices[0].finish_reason,
            message=message.to_dict(),
        )
        self._record_usage(received_answer, completion.usage)
        return received_answer

    async def _join_chunks(self, chunks: Any) -> ReceivedAnswer:
        answer = ReceivedAnswer()
        tool_calls: list[dict[str, Any]] = []
        async for chunk in chunks:
            if chunk.usage is not None:
                self._record_usage(answer, chunk.usage)
            for choice in chunk.choices:
                answer.text += choice.delta.content or ""
                answer.thinking += getattr(choice.delta, "reasoning_content", None) or ""
                answer.reason = choice.finish_reason or answer.reason
                for call in choice.delta.tool_calls or ():
                    if call.index == len(tool_calls):
                        tool_calls.append(
                            {"id": call.id, "name": call.function.name, "arguments": ""}
                        )
                    tool_calls[call.index]["arguments"] += call.function.arguments or ""
        answer.calls = [(call["name"], json.loads(call["arguments"])) for call in tool_calls]
        message_calls = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in tool_calls
        ]
        answer.message = {"role": "assistant", "content": answer.text, "tool_calls": message_calls}
        return answer

    def _record_usage(self, answer: ReceivedAnswer, usage: Any) -> None:
        answer.prompt, answer.output = usage.prompt_tokens, usage.completion_tokens
        answer.cached = usage.prompt_tokens_details.cached_tokens


class _Anthropic:
    def __init__(self, sdk: anthropic.AsyncAnthropic) -> None:
        self._sdk = sdk

    async def send_request(
        self, model: str, features: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        if features.seed is not None or features.wants_json:
            return None
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": 4000,
            "messages": self._build_messages(features),
        }
        if features.history:
            body["system"] = SYSTEM
        if features.tools:
            body["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
        if features.forces_tool:
            body["tool_choice"] = {"type": "any"}
        if features.allows_single_tool_call:
            body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        if features.has_schema:
            body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
        if features.stop is not None:
            body["stop_sequences"] = [features.stop]
        if features.thinking:
            body["thinking"] = {"type": "enabled", "budget_tokens": 2000}
        try:
            if not stream:
                return self._collect_answer(await self._sdk.messages.create(**body))
            async with self._sdk.messages.stream(**body) as events:
                return self._collect_answer(await events.get_final_message())
        except anthropic.APIStatusError as error:
            assert isinstance(error.body, dict)
            response_body = error.body["error"]
            raise Refused(
                error.status_code, response_body["code"], response_body.get("field")
            ) from None

    def _build_messages(self, features: RequestedFeatures) -> list[Any]:
        messages: list[Any] = []
        if features.history:
            messages += [{"role": role, "content": text} for role, text in HISTORY]
        content: list[Any] = [{"type": "text", "text": features.text}]
        if isinstance(features.picture, bytes):
            data = base64.b64encode(features.picture).decode()
            source = {"type": "base64", "media_type": "image/png", "data": data}
            content.append({"type": "image", "source": source})
        elif features.picture is not None:
            content.append({"type": "image", "source": {"type": "url", "url": features.picture}})
        messages.append({"role": "user", "content": content})
        if features.previous_answer is not None:
            tool_uses = [
                block for block in features.previous_answer.message if block.type == "tool_use"
            ]
            messages.append({"role": "assistant", "content": features.previous_answer.message})
            tool_results = [
                {"type": "tool_result", "tool_use_id": tool_use.id, "content": result}
                for tool_use, result in zip(tool_uses, features.results, strict=True)
            ]
            messages.append({"role": "user", "content": tool_results})
        return messages

    def _collect_answer(self, message: Any) -> ReceivedAnswer:
        usage = message.usage
        answer = ReceivedAnswer(
            reason=message.stop_reason,
            message=message.content,
            prompt=usage.input_tokens + usage.cache_read_input_tokens,
            cached=usage.cache_read_input_tokens,
            output=usage.output_tokens,
        )
        for block in message.content:
            match block.type:
                case "text":
                    answer.text += block.text
                case "thinking":
                    answer.thinking += block.thinking
                case "tool_use":
                    answer.calls.append((block.name, block.input))
        return answer


class _Ollama:
    def __init__(self, sdk: ollama.AsyncClient) -> None:
        self._sdk = sdk

    async def send_request(
        self, model: str, features: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        if (
            features.forces_tool
            or features.allows_single_tool_call
            or isinstance(features.picture, str)
        ):
            return None
        body: dict[str, Any] = {"model": model, "messages": self._build_messages(features)}
        options: dict[str, Any] = {}
        if features.tools:
            function = {"name": "weather", "parameters": SCHEMA}
            body["tools"] = [{"type": "function", "function": function}]
        if features.has_schema or features.wants_json:
            body["format"] = SCHEMA if features.has_schema else "json"
        if features.stop is not None:
            options["stop"] = [features.stop]
        if features.seed is not None:
            options["seed"] = features.seed
        if features.thinking:
            body["think"] = True
        body |= {"options": options, "stream": stream}
        try:
            return self._collect_answer([chunk async for chunk in self._send_chat(body)])
        except ollama.ResponseError as error:
            # Of an error the SDK keeps the sentence only.
            response_body = (await self._sdk._client.post("/api/chat", json=body)).json()
            raise Refused(
                error.status_code, response_body["code"], response_body.get("field")
            ) from None

    async def _send_chat(self, body: dict[str, Any]) -> AsyncIterator[Any]:
        # The SDK's own types keep four members of a tool's schema and drop the rest.
        request_arguments = (ollama.ChatResponse, "POST", "/api/chat")
        if body["stream"]:
            async for chunk in await self._sdk._request(*request_arguments, json=body, stream=True):
                yield chunk
        else:
            yield await self._sdk._request(*request_arguments, json=body)

    def _build_messages(self, features: RequestedFeatures) -> list[Any]:
        messages: list[Any] = []
        if features.history:
            messages += [{"role": "system", "content": SYSTEM}]
            messages += [{"role": role, "content": text} for role, text in HISTORY]
        message: dict[str, Any] = {"role": "user", "content": features.text}
        if isinstance(features.picture, bytes):
            message["images"] = [base64.b64encode(PICTURE).decode()]
        messages.append(message)
        if features.previous_answer is not None:
            messages.append(features.previous_answer.message)
            messages += [
                {"role": "tool", "tool_name": name, "content": result}
                for (name, _), result in zip(
                    features.previous_answer.calls, features.results, strict=True
                )
            ]
        return messages

    def _collect_answer(self, chunks: list[Any]) -> ReceivedAnswer:
        answer = ReceivedAnswer()
        tool_calls: list[Any] = []
        for chunk in chunks:
            answer.text += chunk.message.content or ""
            answer.thinking += chunk.message.thinking or ""
            tool_calls += chunk.message.tool_calls or ()
        answer.calls = [(call.function.name, dict(call.function.arguments)) for call in tool_calls]
        last_chunk = chunks[-1]
        answer.reason = last_chunk.done_reason
        answer.prompt, answer.output = last_chunk.prompt_eval_count, last_chunk.eval_count
        message_calls = [
            {"function": {"name": name, "arguments": arguments}} for name, arguments in answer.calls
        ]
        answer.message = {"role": "assistant", "content": answer.text, "tool_calls": message_calls}
        return answer
