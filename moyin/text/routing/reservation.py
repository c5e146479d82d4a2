"""Computes what a call may cost at most, which is reserved so that budgets are never exceeded."""

from __future__ import annotations

from decimal import Decimal

from moyin.domain.money import Price, pico_to_usd
from moyin.domain.needs import Needs
from moyin.text.routing.compiled_route import CompiledRoute, EligibleDeployment

__all__ = ["max_call_cost", "max_cost"]

# A token has at least one byte, and `Needs` estimates one token per four bytes.
_MAX_TOKENS_PER_ESTIMATED = 4
# Tokens that providers add to a prompt, for example for tools.
_PROVIDER_TOKENS = 1_000


def max_cost(route: CompiledRoute, needs: Needs, *, choices: int, streams: bool) -> Decimal:
    """Return the US dollars that the most expensive target may cost.

    It assumes the longest possible prompt (a whole context if documents are stored elsewhere), the
    longest allowed answer, and the highest rates. It doubles where a hedged call may be made.

    Args:
        choices: number of answers requested at once.
    """
    able = [target for target in route.targets if target.model.supports(needs)]
    max_pico = max(
        (_max_pico(target.price(), target.model.context, needs, choices) for target in able),
        default=0,
    )
    return pico_to_usd(2 * max_pico if streams and route.hedging is not None else max_pico)


def max_call_cost(target: EligibleDeployment, needs: Needs) -> Decimal:
    """Return the US dollars that one call for one answer may cost at this target."""
    return pico_to_usd(_max_pico(target.price(), target.model.context, needs, 1))


def _max_pico(price: Price, context: int, needs: Needs, choices: int) -> int:
    prompt = (
        _MAX_TOKENS_PER_ESTIMATED * needs.prompt_tokens + needs.attachment_bytes + _PROVIDER_TOKENS
    )
    if needs.longest_input is None:
        prompt = context if needs.has_external_content else min(prompt, context)
    output = 0 if needs.embeddings else choices * min(needs.max_tokens or context, context)
    return price.compute_max_pico_cost(prompt, output)
