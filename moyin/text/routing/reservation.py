"""What a call may cost at most: set aside before it, so that no budget is ever overshot."""

from __future__ import annotations

from decimal import Decimal

from moyin.domain.money import Price, usd
from moyin.domain.needs import Needs
from moyin.text.routing.compiled_route import CompiledRoute, EligibleDeployment

__all__ = ["max_call_cost", "max_cost"]

# A token is at least a byte, and `Needs` counts one for four.
_TOKENS_PER_ESTIMATED = 4
# What providers put into a prompt on their own, for tools say.
_UNSEEN_TOKENS = 1_000


def max_cost(route: CompiledRoute, needs: Needs, *, choices: int, streams: bool) -> Decimal:
    """US dollars that the dearest contender may cost: the longest prompt that the request can be (a
    whole context where documents are elsewhere) and the longest answer that it allows, at the
    highest rates; twice where a second back end may be asked at the same time.

    Args:
        choices: answers that are asked for at once.
    """
    able = [one for one in route.targets if one.model.supports(needs)]
    dearest = max(
        (_pico(one.price(), one.model.context, needs, choices) for one in able), default=0
    )
    return usd(2 * dearest if streams and route.hedging is not None else dearest)


def max_call_cost(target: EligibleDeployment, needs: Needs) -> Decimal:
    """US dollars that one call for one answer may cost there at most."""
    return usd(_pico(target.price(), target.model.context, needs, 1))


def _pico(price: Price, context: int, needs: Needs, choices: int) -> int:
    prompt = _TOKENS_PER_ESTIMATED * needs.prompt_tokens + needs.attachment_bytes + _UNSEEN_TOKENS
    if needs.longest_input is None:
        prompt = context if needs.has_external_content else min(prompt, context)
    output = 0 if needs.embeddings else choices * min(needs.max_tokens or context, context)
    return price.max_pico_cost(prompt, output)
