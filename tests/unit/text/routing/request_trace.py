"""Generates a studio's day of 2,400 text requests from a fixed seed.

There are nine kinds of requests, each with its own lengths (log-normal, like measured ones), needs
and residency rules. The router knows the prompt and perhaps a token limit. Only the back end knows
the length of the answer, and how much of the prompt is in its cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

_SEED = 20_261_125
_COUNT = 2_400


@dataclass(frozen=True, kw_only=True)
class RequestKind:
    """A kind of requests; a length is its median in tokens, and the spread of its logarithm.

    Attributes:
        share: the kind's share of all requests.
        cached: the share of the prompt, from 0 to 1, that the request marks for Claude's cache.
        alias: the requested alias.
        limit: the token limit that the request sets for its answer.
    """

    name: str
    share: float
    prompt: tuple[float, float]
    output: tuple[float, float]
    alias: str = "auto"
    limit: int | None = None
    cached: float = 0.0
    tools: bool = False
    vision: bool = False
    schema: bool = False


KINDS = (
    RequestKind(name="chat", share=0.25, prompt=(400, 0.8), output=(220, 0.6)),
    RequestKind(
        name="label", share=0.15, prompt=(700, 0.5), output=(12, 0.4), limit=32, schema=True
    ),
    RequestKind(name="extract", share=0.12, prompt=(900, 0.6), output=(40, 0.5), schema=True),
    RequestKind(name="summary", share=0.10, prompt=(6_000, 0.7), output=(260, 0.4), limit=1_000),
    RequestKind(
        name="translate", share=0.10, prompt=(1_500, 0.5), output=(1_500, 0.5), limit=8_000
    ),
    RequestKind(name="story", share=0.05, prompt=(300, 0.5), output=(1_500, 0.5), limit=4_000),
    RequestKind(
        name="agent",
        share=0.12,
        prompt=(12_000, 0.5),
        output=(180, 0.7),
        tools=True,
        limit=4_096,
        cached=0.8,
    ),
    RequestKind(
        name="caption", share=0.05, prompt=(150, 0.4), output=(90, 0.4), limit=300, vision=True
    ),
    RequestKind(name="plan", share=0.06, prompt=(2_500, 0.6), output=(900, 0.5), alias="smart"),
)
# All texts of Ada must stay on the premises, and so must a tenth of the others' texts.
_TENANTS = ("ada", "ben", "ben", "ben", "cleo", "cleo", "cleo", "cleo")
_AT_HOME = 0.1


@dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """One request of the simulated day.

    Attributes:
        prompt: the length of the prompt in tokens, as the back end counts them.
        bytes_: the length of the prompt in bytes.
        output: the length of the answer in tokens.
    """

    id: str
    kind: RequestKind
    owner: str
    at_home: bool
    prompt: int
    bytes_: int
    output: int

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-moyin-residency", b"on-premises")] if self.at_home else []


def generate_requests() -> Iterator[TraceRequest]:
    generator = random.Random(_SEED)
    weights = [kind.share for kind in KINDS]
    for number in range(_COUNT):
        (kind,) = generator.choices(KINDS, weights)
        prompt = _draw_length(generator, kind.prompt)
        output = _draw_length(generator, kind.output)
        owner = generator.choice(_TENANTS)
        # Claude's tier is asked for only where the data may go there.
        must_stay_on_premises = (
            kind.alias == "auto" and not kind.vision and generator.random() < _AT_HOME
        )
        yield TraceRequest(
            id=str(number),
            kind=kind,
            owner="ben" if owner == "ada" and (kind.vision or kind.alias != "auto") else owner,
            at_home=must_stay_on_premises,
            prompt=prompt,
            # Prose has more bytes per token than code; the router only sees bytes.
            bytes_=round(prompt * generator.uniform(3.4, 4.6)),
            output=output if kind.limit is None else min(output, kind.limit),
        )


def _draw_length(generator: random.Random, distribution: tuple[float, float]) -> int:
    median, sigma = distribution
    return max(1, round(generator.lognormvariate(math.log(median), sigma)))
