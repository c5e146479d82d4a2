"""Leaves members out of requests that no model can use, where the operator allows it.

Some clients send tools of their own, or ask for reasoning, with every request. The default is to
refuse what a model cannot do, since a client that sends tools may rely on their being called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moyin.domain.chat import ChatRequest
from moyin.domain.needs import Model, Needs
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.compiled_route import CompiledRoute


def omit_unusable_members(
    codec: ProtocolCodec, request: ParsedRequest, route: CompiledRoute
) -> tuple[ParsedRequest, tuple[str, ...]]:
    """Return the request without what no target of the route can use, and the omitted abilities.

    A request that insists on a tool call keeps its tools, and so is refused.
    """
    if not route.omit:
        return request, ()
    needs = request.derive_needs()
    abilities = tuple(ability for ability in sorted(route.omit) if getattr(needs, ability))
    if "tools" in abilities and _insists_on_tools(request.data.get("tool_choice")):
        abilities = tuple(ability for ability in abilities if ability != "tools")
    names = {name for ability in abilities for name in codec.ability_members.get(ability, ())}
    if not names:
        return request, ()
    data = {name: value for name, value in request.data.items() if name not in names}
    return codec.replace_body(request, data), abilities


def omit_unusable_effort(request: ChatRequest, needs: Needs, model: Model) -> ChatRequest:
    """Return the request without a level of effort if the model does not reason.

    Anthropic's clients may set the level without asking for reasoning (`Needs.thinking`).
    """
    reasoning = request.reasoning
    if reasoning is None or not reasoning.enabled or model.thinking or needs.thinking:
        return request
    return replace(request, reasoning=None)


def describe_omission(reason: str, omitted: Sequence[str]) -> str:
    """Return the reason of a choice with what the request did without, such as ``free; without tools``."""
    return f"{reason}; without {' and '.join(omitted)}" if omitted else reason


def _insists_on_tools(choice: object) -> bool:
    """Return True if a member ``tool_choice``, of any protocol, forces a call."""
    if isinstance(choice, dict):
        mode = choice.get("mode") or choice.get("type")
        return mode not in ("auto", "none")
    return choice not in (None, "auto", "none")
