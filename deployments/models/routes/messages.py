"""``POST /v1/messages``."""

from __future__ import annotations

from deployments.models.routes.calls import CallRoute
from moyin.protocols.anthropic.dialect import AnthropicDialect
from moyin.routing.dispatch import Dispatcher

__all__ = ["messages"]


def messages(dispatcher: Dispatcher) -> CallRoute:
    return CallRoute(AnthropicDialect(), dispatcher)
