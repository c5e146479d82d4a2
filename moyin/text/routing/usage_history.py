"""Predicts the token usage of a call from the usage of earlier calls."""

from __future__ import annotations

from typing import TypeAlias

from moyin.domain.money import Usage
from moyin.domain.needs import Needs
from moyin.text.routing.averages import KeyedAverages

_DEFAULT_OUTPUT_TOKENS = 256.0
# Prior share of cached prompt tokens for a client that marks its prompt for caching. Without it, a
# model with a cheap cache would never be called, and its cache hits would never be observed.
_DEFAULT_CACHED_SHARE = 0.5
# Requests of the same shape tend to have answers of similar length. A shape is a number that encodes
# the magnitudes of the prompt and of the token limit, and the requested features.
RequestShape: TypeAlias = int


class UsageHistory:
    """Bounded history of token usage, averaged by model and by request shape.

    Requests of about the same length, with the same features such as tools, have the same shape. If
    a model has answered few requests of a shape, the prediction is close to the average of all
    models for this shape. If the shape is rare, too, it is close to the model's average.
    """

    def __init__(self) -> None:
        self._output = KeyedAverages()
        self._cached = KeyedAverages()
        self._ratio = KeyedAverages()

    def record(self, model: str, needs: Needs, usage: Usage) -> None:
        """Record the usage of a successful call, unless it is empty."""
        if needs.embeddings or usage.prompt_tokens + usage.output_tokens == 0:
            return
        shape = compute_request_shape(needs)
        for key in (model, shape, (model, shape)):
            self._output.add(key, usage.output_tokens)
        if usage.prompt_tokens:
            self._cached.add((model, shape), usage.cached_tokens / usage.prompt_tokens)
            if needs.prompt_tokens:
                self._ratio.add(model, usage.prompt_tokens / needs.prompt_tokens)

    def estimate_prompt_tokens(self, model: str, needs: Needs) -> int:
        """Return the estimated tokens of a prompt, corrected by the model's earlier calls.

        The correction is the ratio of the real to the estimated tokens in those calls.
        """
        return round(needs.prompt_tokens * self._ratio.estimate(model, 1.0))

    def predict_usage(self, model: str, needs: Needs, shape: RequestShape) -> Usage:
        """Return the expected usage of a call, with an output within the client's token limit."""
        if needs.embeddings:
            return Usage(input_tokens=needs.prompt_tokens)
        output_tokens = self._output.estimate(model, _DEFAULT_OUTPUT_TOKENS)
        output_tokens = self._output.estimate(shape, output_tokens)
        output_tokens = self._output.estimate((model, shape), output_tokens)
        if needs.max_tokens is not None and output_tokens > needs.max_tokens:
            output_tokens = needs.max_tokens
        prompt_tokens = self.estimate_prompt_tokens(model, needs)
        prior_share = _DEFAULT_CACHED_SHARE if needs.has_cache_markers else 0.0
        cached_tokens = round(prompt_tokens * self._cached.estimate((model, shape), prior_share))
        return Usage(
            input_tokens=prompt_tokens - cached_tokens,
            cached_tokens=cached_tokens,
            output_tokens=round(output_tokens),
        )


def compute_request_shape(needs: Needs) -> RequestShape:
    """Return the shape of a request: a number that is the same for similar requests."""
    limit_magnitude = 0 if needs.max_tokens is None else needs.max_tokens.bit_length() + 1
    features = needs.tools | needs.schema << 1 | needs.thinking << 2 | needs.has_cache_markers << 3
    return needs.prompt_tokens.bit_length() | limit_magnitude << 6 | features << 12
