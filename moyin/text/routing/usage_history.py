"""What calls usually use, learned from those that ended."""

from __future__ import annotations

from typing import TypeAlias

from moyin.domain.money import Usage
from moyin.domain.needs import Needs
from moyin.text.routing.averages import Averages

__all__ = ["Shape", "UsageHistory", "shape_of"]

_UNKNOWN_OUTPUT = 256.0
# Who marks a prompt for the cache expects to find it there; without belief in that, a model whose
# cache is cheap would never be asked and so never learned of.
_UNKNOWN_CACHED = 0.5
# Requests of one shape tend to have answers of one length: the prompt's and the limit's magnitude,
# and what is asked for, packed into one number.
Shape: TypeAlias = int


class UsageHistory:
    """Tokens to expect, by model and by the request's shape.

    A model that never met a shape borrows from the shape's average over all models, then from its
    own average over all shapes. Everything is bounded.
    """

    def __init__(self) -> None:
        self._output = Averages()
        self._cached = Averages()
        self._ratio = Averages()

    def record(self, model: str, needs: Needs, usage: Usage) -> None:
        """A call to ``model`` ended well with ``usage``; with none its back end told nothing."""
        if needs.embeddings or usage.prompt_tokens + usage.output_tokens == 0:
            return
        shape = shape_of(needs)
        for key in (model, shape, (model, shape)):
            self._output.add(key, usage.output_tokens)
        if usage.prompt_tokens:
            self._cached.add((model, shape), usage.cached_tokens / usage.prompt_tokens)
            if needs.prompt_tokens:
                self._ratio.add(model, usage.prompt_tokens / needs.prompt_tokens)

    def estimate_prompt_tokens(self, model: str, needs: Needs) -> int:
        """Return the probable length of a prompt: the estimate from its bytes, corrected by the ratio
        that was seen so far for the model."""
        return round(needs.prompt_tokens * self._ratio.estimate(model, 1.0))

    def expect(self, model: str, needs: Needs, shape: Shape) -> Usage:
        """What a call of this shape will probably use; never more output than the client allows."""
        if needs.embeddings:
            return Usage(input_tokens=needs.prompt_tokens)
        output = self._output.estimate(model, _UNKNOWN_OUTPUT)
        output = self._output.estimate(shape, output)
        output = self._output.estimate((model, shape), output)
        if needs.max_tokens is not None and output > needs.max_tokens:
            output = needs.max_tokens
        prompt = self.estimate_prompt_tokens(model, needs)
        believed = _UNKNOWN_CACHED if needs.has_cache_markers else 0.0
        cached = round(prompt * self._cached.estimate((model, shape), believed))
        return Usage(
            input_tokens=prompt - cached, cached_tokens=cached, output_tokens=round(output)
        )


def shape_of(needs: Needs) -> Shape:
    limit = 0 if needs.max_tokens is None else needs.max_tokens.bit_length() + 1
    asked = needs.tools | needs.schema << 1 | needs.thinking << 2 | needs.has_cache_markers << 3
    return needs.prompt_tokens.bit_length() | limit << 6 | asked << 12
