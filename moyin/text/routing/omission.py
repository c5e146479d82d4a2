"""Removes request fields that no model of the route supports, if the operator allows it.

Some clients send tools or request reasoning with every request. By default such a request is
rejected if no model has the ability, because the client may rely on the tools being used.
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
    """Remove the request's fields that no target supports, such as ``tools``.

    A request that requires a tool call keeps its tools, and is therefore rejected later.

    Returns:
        The changed request, and the abilities whose fields were removed.
    """
    if not route.omitted_abilities:
        return request, ()
    needs = request.derive_needs()
    abilities = tuple(
        ability for ability in sorted(route.omitted_abilities) if getattr(needs, ability)
    )
    if "tools" in abilities and _requires_tool_call(request.data.get("tool_choice")):
        abilities = tuple(ability for ability in abilities if ability != "tools")
    omitted_fields = {
        name for ability in abilities for name in codec.request_fields_by_ability.get(ability, ())
    }
    if not omitted_fields:
        return request, ()
    data = {name: value for name, value in request.data.items() if name not in omitted_fields}
    return codec.replace_body(request, data), abilities


def omit_unusable_effort(request: ChatRequest, needs: Needs, model: Model) -> ChatRequest:
    """Return the request without its effort level if the model does not support reasoning.

    Anthropic's clients may set the level without requesting reasoning (`Needs.thinking`).
    """
    reasoning = request.reasoning
    if reasoning is None or not reasoning.enabled or model.thinking or needs.thinking:
        return request
    return replace(request, reasoning=None)


def describe_omission(reason: str, omitted_abilities: Sequence[str]) -> str:
    """Return a routing reason with the removed abilities, such as ``free; without tools``."""
    return f"{reason}; without {' and '.join(omitted_abilities)}" if omitted_abilities else reason


def _requires_tool_call(tool_choice: object) -> bool:
    """Return True if ``tool_choice``, in any protocol's format, requires a tool call."""
    if isinstance(tool_choice, dict):
        mode = tool_choice.get("mode") or tool_choice.get("type")
        return mode not in ("auto", "none")
    return tool_choice not in (None, "auto", "none")
