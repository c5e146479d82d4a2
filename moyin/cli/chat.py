"""Implements ``moyin chat``, which streams the answer to one prompt."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from moyin.cli.screen import AsJsonLines, disarm, errors, out, print_json_line
from moyin.cli.session import run_with_gateway
from moyin.client.errors import RequestRefused
from moyin.client.gateway import GatewayClient, read_events

# The SSE comment with the cost: a header could not have it, because it is known only at the end.
_COST = "x-moyin-cost-usd="


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer to a prompt, as the gateway reports it.

    Attributes:
        cost_usd: the cost in US dollars; empty if unknown.
        route: the reason for the choice of the model, such as ``free``.
    """

    text: str
    backend: str
    model: str
    cost_usd: str
    route: str = ""
    request_id: str = ""

    def format_summary(self) -> str:
        """Return back end, model, cost and route in a line: ``llama.cpp · smollm2 · $0 · free``."""
        parts = (self.backend, self.model, self.cost, self.route)
        return " · ".join(part for part in parts if part)

    @property
    def cost(self) -> str:
        """The cost as text, such as ``$0.25``; empty if the cost is unknown."""
        return f"${self.cost_usd}" if self.cost_usd else ""


def chat(
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="The question; `-` reads it from standard input."),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model, an alias, or `auto` for the cheapest.")
    ] = "auto",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    as_json: AsJsonLines = False,
) -> None:
    """Ask a model: print the answer to standard output, and the model's name to standard error.

    With --json each chunk of the gateway's stream is a line. The last line, whose `object` is
    `moyin.answer`, has the whole text, back end, model, cost, route and request id.
    """
    question = sys.stdin.read() if prompt == "-" else prompt
    answer = run_with_gateway(
        lambda gateway: stream_answer(
            gateway, question, model=model, system=system, max_tokens=max_tokens, as_json=as_json
        )
    )
    if as_json:
        print_json_line({"object": "moyin.answer", **asdict(answer)})
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    errors.print(answer.format_summary(), style="dim", markup=False)
    if answer.request_id:
        errors.print(f"request {answer.request_id}", style="dim", markup=False)


async def stream_answer(
    gateway: GatewayClient,
    prompt: str,
    *,
    model: str,
    system: str | None = None,
    max_tokens: int | None = None,
    as_json: bool = False,
) -> Answer:
    """Send a prompt, print the answer as it arrives, and return it with its cost and route.

    Args:
        system: the system prompt, if any.
        max_tokens: the maximum length of the answer in tokens; None for the model's own limit.
        as_json: True to print the chunks of the stream as JSON lines instead of their texts.
    """
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": prompt}],
        "stream": True,
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    texts: list[str] = []
    async with gateway.open("POST", "/v1/chat/completions", body) as response:
        headers = response.headers
        cost = ""
        async for event in read_events(response):
            cost = event.comment.removeprefix(_COST) if _COST in event.comment else cost
            chunk = event.data
            if not isinstance(chunk, dict):
                continue
            if "error" in chunk:
                raise RequestRefused(200, headers, (event.text or "").encode())
            new_text = "".join(
                choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", [])
            )
            texts.append(new_text)
            if as_json:
                print_json_line(chunk)
            else:
                # A model may repeat what a stranger wrote into its prompt.
                sys.stdout.write(disarm(new_text) if out.is_terminal else new_text)
                sys.stdout.flush()
    return Answer(
        text="".join(texts),
        backend=headers.get("x-moyin-backend", ""),
        model=headers.get("x-moyin-model", ""),
        cost_usd=cost,
        route=headers.get("x-moyin-route", ""),
        request_id=headers.get("x-request-id", ""),
    )
