"""``POST /v1/chat/completions``."""

from __future__ import annotations

from deployments.models.routes.calls import CallRoute
from moyin.protocols.openai.dialect import OpenAIDialect
from moyin.routing.dispatch import Dispatcher

__all__ = ["chat_completions"]


def chat_completions(dispatcher: Dispatcher) -> CallRoute:
    return CallRoute(OpenAIDialect(), dispatcher)
